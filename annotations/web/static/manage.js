// The managers' dashboard: asks for the status every few seconds while it is in view.

const csrf = document.querySelector('meta[name="csrf"]').content;
const at = (id) => document.getElementById(id);
const percent = (share) => (share === null || share === undefined || Number.isNaN(share) ? "–" : `${(100 * share).toFixed(1)} %`);
const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString());

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

async function call(path, body) {
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers: body ? { "Content-Type": "application/json", "X-CSRF-Token": csrf } : {},
    body: body && JSON.stringify(body),
    cache: "no-store",
  });
  const reply = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(reply.error ?? response.statusText);
  return reply;
}

function rows(table, cells) {
  table.tBodies[0].replaceChildren(...cells.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell ?? "–")))));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 5400) return `${Math.max(1, Math.round(seconds / 60))} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

function tiles(status) {
  const { coverage, throughput } = status;
  const facts = [
    ["Pairs complete", `${number(coverage.complete)} of ${number(coverage.pairs)}`, coverage.pairs ? coverage.complete / coverage.pairs : 0],
    ["Answers counted", `${number(coverage.answers)} of ${number(coverage.wanted)}`, coverage.wanted ? coverage.answers / coverage.wanted : 0],
    ["Decided", `${number(coverage.decided)}, ${number(coverage.undecided)} undecided`, null],
    ["Last hour", `${number(throughput.last_hour)} answers`, null],
    ["Raters now", number(throughput.active), null],
    ["Time left", duration(throughput.seconds_left), null],
  ];
  at("tiles").replaceChildren(
    ...facts.map(([name, value, share]) => {
      const tile = element("div", { className: "tile" }, element("span", {}, name), element("strong", {}, value));
      if (share !== null) tile.append(element("progress", { max: 1, value: share, ariaLabel: name }));
      return tile;
    }),
  );
}

function hours(list) {
  const top = Math.max(1, ...list.map(([, answers]) => answers));
  at("hours").replaceChildren(
    ...list.map(([start, answers]) => {
      const bar = element("span", { className: "hour", title: `${new Date(1000 * start).toLocaleString()}: ${answers} answers` });
      bar.style.setProperty("--height", String(answers / top));
      return bar;
    }),
  );
  at("hours").setAttribute("aria-label", `Answers an hour over the last ${list.length} hours, at most ${top}`);
}

function raters(status) {
  rows(
    at("raters"),
    status.raters.map((rater) => {
      const paused = rater.stage === "paused";
      const button = element("button", { type: "button" }, paused ? "Reinstate" : "Pause");
      button.disabled = ["withdrawn", "failed"].includes(rater.stage) || status.frozen;
      button.addEventListener("click", () =>
        act(() => call(`/api/manage/raters/${rater.rater_id}`, { action: paused ? "reinstate" : "pause", reason: "by hand" })),
      );
      return [
        `${rater.label || rater.pseudonym}${rater.arm ? ` (${rater.arm})` : ""}`,
        rater.reason ? `${rater.stage}: ${rater.reason}` : rater.stage,
        number(rater.answered),
        `${percent(rater.quality)} (${percent(rater.quality_low)} to ${percent(rater.quality_high)})`,
        `${number(rater.gold_right)} of ${number(rater.gold_seen)}`,
        percent(rater.yes),
        rater.median_ms === null ? "–" : `${(rater.median_ms / 1000).toFixed(1)} s`,
        number(rater.fast),
        button,
      ];
    }),
  );
}

const FIGURES = {
  alpha_nominal: "Krippendorff's α, nominal",
  alpha_ordinal: "Krippendorff's α, ordinal",
  ac1: "Gwet's AC1",
  fleiss_kappa: "Fleiss' κ",
  observed: "Agreeing pairs of votes",
  prevalence_0: "Share of no",
  prevalence_1: "Share of maybe",
  prevalence_2: "Share of yes",
};

function figures(list) {
  rows(
    at("agreement"),
    list.map(({ name, value, low, high, n }) => [
      FIGURES[name] ?? name,
      value === null || Number.isNaN(value) ? "–" : value.toFixed(3),
      low === null || Number.isNaN(low) ? "–" : `${low.toFixed(3)} to ${high.toFixed(3)}`,
      number(n),
    ]),
  );
  at("no-agreement").hidden = list.length > 0;
}

function gold(confusion) {
  rows(
    at("gold"),
    Object.entries(confusion.counts).map(([expected, given]) => [expected, number(given.yes ?? 0), number(given.maybe ?? 0), number(given.no ?? 0)]),
  );
  rows(
    at("hardest"),
    confusion.hardest.map((pair) => [pair.image_id, String(pair.class_index), pair.expected, `${pair.yes} yes, ${pair.maybe} maybe, ${pair.no} no`]),
  );
}

let offset = 0;
async function flagged() {
  const { total, pairs } = await call(`/api/manage/flagged?offset=${offset}`);
  at("flagged-count").textContent = total ? `${number(total)} pairs have all their votes and no verdict.` : "None.";
  at("flagged").replaceChildren(
    ...pairs.map((pair) => {
      const buttons = ["accepted", "unsure", "rejected"].map((verdict) => {
        const button = element("button", { type: "button", ariaPressed: String(pair.verdict === verdict) }, verdict);
        button.addEventListener("click", () =>
          act(() => call("/api/manage/adjudicate", { question_id: pair.question_id, verdict: pair.verdict === verdict ? null : verdict, note: "" })),
        );
        return button;
      });
      return element(
        "article",
        { className: "pair" },
        element("img", { src: pair.image, alt: `Photograph ${pair.image_id}`, loading: "lazy" }),
        element("strong", {}, pair.label),
        element("span", {}, pair.gloss),
        element("span", { className: "fine" }, `${pair.yes} yes, ${pair.maybe} maybe, ${pair.no} no`),
        element("div", { className: "tools", role: "group", ariaLabel: `Verdict on ${pair.label}` }, ...buttons),
      );
    }),
  );
  at("earlier").disabled = offset === 0;
  at("later").disabled = offset + pairs.length >= total;
  at("later").dataset.step = String(pairs.length);
}

async function act(what) {
  try {
    await what();
    await Promise.all([refresh(), flagged()]);
  } catch (error) {
    at("problem").textContent = error.message;
  }
}

async function refresh() {
  try {
    const status = await call("/api/manage/status");
    at("problem").textContent = "";
    tiles(status);
    hours(status.throughput.hours);
    raters(status);
    figures(status.agreement);
    gold(status.gold);
    at("at").textContent = `${status.frozen ? "Frozen for publication. " : ""}As of ${new Date(1000 * status.at).toLocaleTimeString()}.`;
    document.body.dataset.ready = "yes";
  } catch (error) {
    at("problem").textContent = `No answer from the server (${error.message}); trying again.`;
  }
}

at("invite").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  try {
    const { links } = await call("/api/manage/invitations", { role: "rater", count: Number(form.get("count")), label: form.get("label"), uses: 1 });
    at("links").hidden = false;
    at("links").value = links.join("\n");
    at("links").select();
  } catch (error) {
    at("problem").textContent = error.message;
  }
});
for (const [id, sign] of [["earlier", -1], ["later", 1]]) {
  at(id).addEventListener("click", () => {
    offset = Math.max(0, offset + sign * Number(at("later").dataset.step || 12));
    act(async () => {});
  });
}

refresh();
flagged();
setInterval(() => document.visibilityState === "visible" && refresh(), 5000);
