"""Explanations of single predictions, made to be shown to people.

`heatmaps`: Grad-CAM and integrated gradients (feature-based). `neighbours`: nearest reference images of the
predicted class (example-based). `layers`: which layer Grad-CAM reads, by architecture. `guards`: whether a
heat map depends on the image and on the weights at all. `pictures`: heat maps and neighbours as pixels.
`stimuli`: from predictions to these pictures. `pack`: a folder of them with its manifest, ready for a study.

Importing this package imports no torch.
"""
