/* Any two entries, image by image, from their packed bits. The tests are those of `beyond compare`: Tango's interval
   and McNemar's exact test; where answers are unjudged, all that they may turn out to be (Imbens and Manski). */
(() => {
  "use strict";
  const escape = (text) => String(text).replace(/[&<>"'`]/g, (c) => `&#${c.charCodeAt(0)};`);
  const folder = document.currentScript.src.replace(/compare\.js.*$/, "");
  const Z = 1.959963984540054, Z1 = 1.6448536269514722;

  // ---------------------------------------------------------------------------------------------- statistics
  function logGamma(x) { // Stirling's series after shifting the argument up
    let shift = 0;
    while (x < 12) shift -= Math.log(x++);
    const y = 1 / (x * x);
    return shift + (x - 0.5) * Math.log(x) - x + 0.9189385332046728 + (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))) / x;
  }
  function mcnemar(b, c) {
    const n = b + c, k = Math.min(b, c);
    if (!n) return 1;
    let term = 1, sum = 1;
    for (let i = k; i > 0; i--) { term *= i / (n - i + 1); sum += term; if (term < sum * 1e-17) break; }
    return Math.min(1, 2 * sum * Math.exp(logGamma(n + 1) - logGamma(k + 1) - logGamma(n - k + 1) - n * Math.LN2));
  }
  function solve(f, target, low, high) { // f rises
    for (let i = 0; i < 100; i++) { const middle = (low + high) / 2; if (f(middle) < target) low = middle; else high = middle; }
    return (low + high) / 2;
  }
  function tango(b, c, n, z) {
    const root = (delta) => {
      const first = -b - c + (2 * n - b + c) * delta, constant = -c * delta * (1 - delta);
      const q = Math.max(0, -delta, (Math.sqrt(Math.max(0, first * first - 8 * n * constant)) - first) / (4 * n));
      const top = n * delta - b + c, variance = Math.sqrt(Math.max(0, n * (2 * q + delta * (1 - delta))));
      return variance > 0 ? top / variance : top === 0 ? 0 : top > 0 ? Infinity : -Infinity;
    };
    return [solve(root, -z, -1, 1), solve(root, z, -1, 1)];
  }
  function normal(x) { // Φ, by its series near 0 and a continued fraction beyond
    if (x < 0) return 1 - normal(-x);
    if (x > 38) return 1;
    const density = Math.exp(-x * x / 2) * 0.3989422804014327;
    if (x < 4) { let term = x, sum = x; for (let i = 3; i < 400; i += 2) { term *= x * x / i; sum += term; if (term < sum * 1e-17) break; } return 0.5 + density * sum; }
    let f = 0;
    for (let i = 100; i > 0; i--) f = i / (x + f);
    return 1 - density / (x + f);
  }
  function critical(width, error) {
    if (width <= 0) return Z;
    if (error <= 0) return Z1;
    return solve((z) => normal(z + width / error) - normal(-z), 0.95, Z1 - 1e-9, Z + 1e-9);
  }
  function paired({ n, onlyA, onlyB }) { // counts at worst, as observed, at best for the first
    const difference = onlyA.map((b, i) => (b - onlyB[i]) / n);
    const error = Math.max(...difference.map((d, i) => Math.sqrt(Math.max(0, (onlyA[i] + onlyB[i]) / n - d * d) / n)));
    const z = critical(difference[2] - difference[0], error);
    return {
      difference: difference[1], low: tango(onlyA[0], onlyB[0], n, z)[0], high: tango(onlyA[2], onlyB[2], n, z)[1],
      p: difference[0] < 0 && difference[2] > 0 ? 1 : Math.max(...onlyA.map((b, i) => mcnemar(b, onlyB[i]))),
    };
  }
  window.BEYOND_STATISTICS = { mcnemar, tango, critical, paired };

  // ------------------------------------------------------------------------------------------------- the page
  const data = window.BEYOND, box = document.getElementById("result"), state = document.getElementById("state");
  if (!data || !box) return;
  const a = document.getElementById("a"), b = document.getElementById("b");
  const metric = Object.fromEntries(data.metrics.map((m) => [m.k, m]));
  const MEASURES = [
    { key: "top1", bits: "top1", mask: null, by: "label" },
    { key: "top1_evaluable", bits: "top1", mask: "real", by: null },
    { key: "real_accuracy", bits: "real", mask: "real", by: "people" },
    { key: "mla_plain", bits: "mla", mask: "mla", by: "experts" },
    { key: "consolidated_accuracy", bits: "consolidated", mask: "consolidated", by: "all" },
  ];
  const BY = { label: "the single label", people: "people (ReaL)", experts: "experts (MLA)", all: "all sources merged" };
  const PERCENT = (value, d = 2) => (100 * value).toFixed(d);
  const signed = (value, d = 2) => `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(d)}`;
  const pText = (p) => (p < 1e-12 ? "< 10⁻¹²" : p < 0.001 ? p.toExponential(1).replace(/e-?(\d+)/, (_, e) => ` × 10${[...`-${e}`].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`) : p.toFixed(3));
  window.BEYOND_BITS = window.BEYOND_BITS || {};
  const loading = {};
  function script(file) {
    loading[file] = loading[file] || new Promise((resolve, reject) => {
      const node = document.createElement("script");
      node.src = folder + file;
      node.onload = resolve;
      node.onerror = () => { delete loading[file]; reject(new Error(`cannot load ${file}`)); };
      document.head.append(node);
    });
    return loading[file];
  }
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const bit = (array, i) => (array[i >> 3] >> (i & 7)) & 1;
  let masks = null;
  const unpacked = {};
  async function load(slug) {
    await Promise.all([script("masks.js"), script(`bits/${encodeURIComponent(slug)}.js`)]);
    if (!masks) {
      const raw = window.BEYOND_MASKS;
      masks = { ...raw, masks: Object.fromEntries(Object.entries(raw.masks).map(([k, v]) => [k, bytes(v)])), labels: new Uint16Array(bytes(raw.labels).buffer) };
    }
    if (!unpacked[slug]) {
      const raw = window.BEYOND_BITS[slug];
      unpacked[slug] = { revisions: raw.revisions, seen: raw.seen ? bytes(raw.seen) : null, right: Object.fromEntries(Object.entries(raw.right).map(([k, v]) => [k, bytes(v)])), open: Object.fromEntries(Object.entries(raw.open).map(([k, rows]) => { const set = new Uint8Array(6250); for (const i of rows) set[i >> 3] |= 1 << (i & 7); return [k, set]; })) };
    }
    return unpacked[slug];
  }
  const COUNT = Uint8Array.from({ length: 256 }, (_, i) => { let n = 0; for (let v = i; v; v &= v - 1) n++; return n; });
  function count(one, two, measure) {
    const A = one.right[measure.bits], B = two.right[measure.bits];
    if (!A || !B) return null;
    let mask = null;
    if (measure.mask) {
      mask = masks.masks[measure.mask];
      if (!mask || [one, two].some((side) => side.revisions[measure.mask] !== masks.revisions[measure.mask])) return null;
    }
    const openA = one.open[measure.bits], openB = two.open[measure.bits];
    const domain = new Uint8Array(6250);
    const onlyA = [0, 0, 0], onlyB = [0, 0, 0];
    let n = 0, both = 0, open = 0;
    for (let i = 0; i < 6250; i++) {
      const d = (mask ? mask[i] : 255) & (one.seen ? one.seen[i] : 255) & (two.seen ? two.seen[i] : 255);
      domain[i] = d;
      const x = A[i] & d, y = B[i] & d, ox = (openA ? openA[i] : 0) & d, oy = (openB ? openB[i] : 0) & d;
      n += COUNT[d];
      both += COUNT[x & y];
      open += COUNT[ox | oy];
      onlyA[0] += COUNT[x & ~(y | oy) & 255]; onlyA[1] += COUNT[x & ~y & 255]; onlyA[2] += COUNT[(x | ox) & ~y & 255];
      onlyB[0] += COUNT[(y | oy) & ~x & 255]; onlyB[1] += COUNT[y & ~x & 255]; onlyB[2] += COUNT[y & ~(x | ox) & 255];
    }
    return n ? { n, both, open, onlyA, onlyB, domain, A, B, neither: n - both - onlyA[1] - onlyB[1] } : null;
  }
  function groups(counts, of, size) { // only the first, only the second, right each, n, by group of the image's label
    const table = Array.from({ length: size }, () => [0, 0, 0, 0, 0]);
    for (let i = 0; i < 50000; i++) {
      if (!bit(counts.domain, i)) continue;
      const row = table[of(masks.labels[i])], x = bit(counts.A, i), y = bit(counts.B, i);
      row[4]++; row[2] += x; row[3] += y;
      if (x && !y) row[0]++; else if (y && !x) row[1]++;
    }
    return table;
  }
  const forest = (found, reach) => {
    const at = (v) => 50 + 50 * Math.max(-1, Math.min(1, v / reach));
    const tone = found.low > 0 ? "for-a" : found.high < 0 ? "for-b" : "";
    return `<span aria-hidden="true"><i class="${tone}" style="left:${at(found.low).toFixed(1)}%;width:${(at(found.high) - at(found.low)).toFixed(1)}%"></i></span>`;
  };
  let by = "people";

  function draw(rowA, rowB, one, two) {
    const nameA = escape(data.name[rowA]), nameB = escape(data.name[rowB]);
    const found = MEASURES.map((measure) => ({ measure, counts: count(one, two, measure) })).filter((f) => f.counts);
    if (!found.length) { box.innerHTML = '<p class="warning">These two have no image in common.</p>'; return; }
    for (const f of found) f.test = paired(f.counts);
    const reach = Math.max(0.002, ...found.map((f) => Math.max(Math.abs(f.test.low), Math.abs(f.test.high))));
    const usable = found.filter((f) => f.measure.by);
    const chosen = usable.find((f) => f.measure.by === by) || usable[0];
    by = chosen.measure.by;
    const head = found.find((f) => f.measure.key === "real_accuracy") || chosen, t = head.test;
    const verdict = t.low > 0 ? `People accept <b class="a">${nameA}</b> more often, by <b>${PERCENT(t.difference, 1)}</b> points.` : t.high < 0 ? `People accept <b class="b">${nameB}</b> more often, by <b>${PERCENT(-t.difference, 1)}</b> points.` : `The images cannot tell <b class="a">${nameA}</b> and <b class="b">${nameB}</b> apart.`;
    const lines = found.map((f) => {
      const c = f.counts, test = f.test, label = metric[f.measure.key] || { label: f.measure.key, short: "" };
      return `<tr data-metric="${f.measure.key}"><th scope="row">${escape(label.label)} <span class="quiet">${escape(label.short)}</span></th><td class="num"><span class="a">${PERCENT((c.both + c.onlyA[1]) / c.n)}</span></td><td class="num"><span class="b">${PERCENT((c.both + c.onlyB[1]) / c.n)}</span></td><td class="num"><b>${signed(test.difference)}</b></td><td class="forest">${forest(test, reach)}</td><td class="num">${signed(test.low)} to ${signed(test.high)}</td><td class="num">${pText(test.p)}</td><td class="num">${c.onlyA[1].toLocaleString("en")}</td><td class="num">${c.onlyB[1].toLocaleString("en")}</td><td class="num">${c.n.toLocaleString("en")}</td></tr>`;
    }).join("");
    const c = chosen.counts, share = (k) => `${(100 * k / c.n).toFixed(1)} %`;
    const byClass = groups(c, (label) => label, 1000), byKind = groups(c, (label) => masks.kind[label], masks.kinds.length);
    const side = (sign) => byClass.map((row, k) => [k, row]).filter(([, row]) => sign * (row[0] - row[1]) > 0).sort((p, q) => sign * ((q[1][0] - q[1][1]) - (p[1][0] - p[1][1])) || p[0] - q[0]).slice(0, 10);
    const classTable = (rows, title) => `<section><h3>${title}</h3><table class="diff"><thead><tr><th scope="col">Class</th><th scope="col" class="num">First, %</th><th scope="col" class="num">Second, %</th><th scope="col" class="num">n</th></tr></thead><tbody>${rows.map(([k, row]) => `<tr><th scope="row"><a href="classes/${k}.html">${escape(masks.names[k])}</a></th><td class="num a">${PERCENT(row[2] / row[4], 0)}</td><td class="num b">${PERCENT(row[3] / row[4], 0)}</td><td class="num">${row[4]}</td></tr>`).join("")}</tbody></table></section>`;
    const kinds = byKind.map((row, k) => ({ k, row })).filter(({ row }) => row[4]).map(({ k, row }) => ({ k, row, test: paired({ n: row[4], onlyA: [row[0], row[0], row[0]], onlyB: [row[1], row[1], row[1]] }) })).sort((p, q) => q.test.difference - p.test.difference || p.k - q.k);
    const kindReach = Math.max(0.01, ...kinds.map(({ test }) => Math.max(Math.abs(test.low), Math.abs(test.high))));
    box.innerHTML = `<p class="lede">${verdict}</p>
      <section class="block"><h2>Differences on the same images</h2><div class="scroll" tabindex="0" role="region" aria-label="Differences"><table class="diff"><caption class="hidden">Paired differences, first minus second, in points</caption><thead><tr><th scope="col">Figure</th><th scope="col" class="num"><span class="a">First, %</span></th><th scope="col" class="num"><span class="b">Second, %</span></th><th scope="col" class="num">Difference</th><th scope="col" class="forest"><span class="hidden">Chart</span></th><th scope="col" class="num">95 % interval</th><th scope="col" class="num">p</th><th scope="col" class="num">Only first</th><th scope="col" class="num">Only second</th><th scope="col" class="num">n</th></tr></thead><tbody>${lines}</tbody></table></div></section>
      <section class="block"><h2>Where each is right alone</h2><p><label for="by">According to</label> <select id="by">${usable.map((f) => `<option value="${f.measure.by}"${f === chosen ? " selected" : ""}>${BY[f.measure.by]}</option>`).join("")}</select></p>
      <div class="venn" aria-hidden="true"><i class="both" style="flex:${c.both}"></i><i class="only-a" style="flex:${c.onlyA[1]}"></i><i class="only-b" style="flex:${c.onlyB[1]}"></i><i class="neither" style="flex:${c.neither}"></i></div>
      <p>Both right ${share(c.both)}, <b class="a">only ${nameA} ${share(c.onlyA[1])}</b>, <b class="b">only ${nameB} ${share(c.onlyB[1])}</b>, neither ${share(c.neither)}, of ${c.n.toLocaleString("en")} images${c.open ? `; ${c.open.toLocaleString("en")} have an answer that nobody judged` : ""}.</p>
      <div class="two">${classTable(side(1), `Classes where <span class="a">${nameA}</span> leads`)}${classTable(side(-1), `Classes where <span class="b">${nameB}</span> leads`)}</div></section>
      <section class="block"><h2>By broad kind</h2><div class="scroll" tabindex="0" role="region" aria-label="By broad kind"><table class="diff kinds"><caption class="hidden">Paired differences by broad kind of the label</caption><thead><tr><th scope="col">Kind of the label</th><th scope="col" class="num">First, %</th><th scope="col" class="num">Second, %</th><th scope="col" class="num">Difference</th><th scope="col" class="forest"><span class="hidden">Chart</span></th><th scope="col" class="num">95 % interval</th><th scope="col" class="num">n</th></tr></thead><tbody>${kinds.map(({ k, row, test }) => `<tr><th scope="row">${escape(masks.kinds[k])}</th><td class="num a">${PERCENT(row[2] / row[4], 1)}</td><td class="num b">${PERCENT(row[3] / row[4], 1)}</td><td class="num"><b>${signed(test.difference, 1)}</b></td><td class="forest">${forest(test, kindReach)}</td><td class="num">${signed(test.low, 1)} to ${signed(test.high, 1)}</td><td class="num">${row[4].toLocaleString("en")}</td></tr>`).join("")}</tbody></table></div></section>`;
    document.getElementById("by").addEventListener("change", (event) => { by = event.target.value; draw(rowA, rowB, one, two); write(); document.getElementById("by").focus(); });
    state.textContent = "";
  }
  function write() {
    const query = new URLSearchParams({ a: a.value, b: b.value });
    if (by !== "people") query.set("by", by);
    try { history.replaceState(null, "", `${location.pathname}?${query}`); } catch { /* opened from a disk */ }
  }
  let turn = 0;
  async function run() {
    const mine = ++turn;
    write();
    if (!a.value || !b.value) return;
    state.textContent = "Loading…";
    try {
      const [one, two] = await Promise.all([load(a.value), load(b.value)]);
      if (mine === turn) draw(data.slug.indexOf(a.value), data.slug.indexOf(b.value), one, two);
    } catch (error) {
      if (mine === turn) { box.innerHTML = ""; state.textContent = `This pair cannot be compared here: ${error.message}.`; }
    }
  }
  const rows = data.slug.map((_, row) => row).filter((row) => (data.bits || "")[row] === "1").sort((p, q) => data.name[p].toLowerCase().localeCompare(data.name[q].toLowerCase(), "en") || p - q);
  for (const select of [a, b]) for (const row of rows) select.append(new Option(data.name[row], data.slug[row]));
  const query = new URLSearchParams(location.search);
  const ranked = rows.filter((row) => data.rank[row]).sort((p, q) => data.rank[p][0] - data.rank[q][0]);
  const pick = (slug, other) => (rows.some((row) => data.slug[row] === slug) ? slug : ((ranked.map((row) => data.slug[row]).find((s) => s !== other)) || ""));
  a.value = pick(query.get("a"), query.get("b"));
  b.value = pick(query.get("b"), a.value);
  if (Object.values(BY).length && query.get("by") in BY) by = query.get("by");
  for (const select of [a, b]) select.addEventListener("change", run);
  document.getElementById("swap").addEventListener("click", () => { [a.value, b.value] = [b.value, a.value]; run(); });
  document.querySelector(".versus").addEventListener("submit", (event) => event.preventDefault());
  if (rows.length > 1) run(); else state.textContent = "There are not two entries to compare.";
})();
