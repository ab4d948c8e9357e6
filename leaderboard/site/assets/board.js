/* The table: sort, filter, search, choose columns, interval bars, pick two to compare, download, state in the
   address. It draws only as many rows as are asked for, so that 1,600 entries sort and filter in a few
   milliseconds. No library: docs/site.md says why. */
(() => {
  "use strict";
  const escape = (text) => String(text).replace(/[&<>"'`]/g, (c) => `&#${c.charCodeAt(0)};`);
  const PAGE = 50;
  const narrow = matchMedia("(max-width: 44em)").matches;
  const dash = '<span class="quiet">–</span>';

  // ------------------------------------------------------------------------------------------------- numbers
  const digits = (n) => (n >= 10000 ? 2 : 1);
  function shown(metric, row, value = metric.v[row]) {
    if (value === null) return "";
    const n = metric.m && metric.m[row] !== undefined ? metric.m[row] : metric.n;
    if (metric.unit === "fraction") return (value / 100).toFixed(digits(n));
    return metric.unit === "count" ? value.toLocaleString("en") : String(Number(value.toPrecision(3)));
  }
  const size = (n) => (n >= 1e9 ? `${+(n / 1e9).toPrecision(3)}\u00a0G` : n >= 1e6 ? `${+(n / 1e6).toPrecision(3)}\u00a0M` : n.toLocaleString("en"));
  const metricCsv = (metric, row) => (metric.v[row] === null ? "" : metric.unit === "fraction" ? metric.v[row] / 1e4 : metric.v[row]);

  // ------------------------------------------------------------------------------------------ what is shown
  function models() {
    const data = window.BEYOND;
    if (!data) return null;
    const rows = data.slug.length;
    for (const metric of data.metrics) if (!metric.v.length) metric.v = new Array(rows).fill(null);
    const word = (set, row) => set.words[+set.at[row]];
    const byKey = Object.fromEntries(data.metrics.map((metric) => [metric.k, metric]));
    const single = byKey.top1_evaluable, people = byKey.real_accuracy;
    const main = (row) => data.rank[row] !== null;
    const span = (metrics) => {
      let low = Infinity, high = -Infinity;
      for (const metric of metrics) metric.v.forEach((value, row) => {
        if (value === null || !main(row)) return;
        low = Math.min(low, value + (metric.l ? metric.l[row] : 0));
        high = Math.max(high, value + (metric.h ? metric.h[row] : 0));
      });
      return low < high ? [low, high] : low === Infinity ? [0, 1e4] : [low - 1, low + 1];
    };
    // Accuracies stand on a scale that is logarithmic in the error, as in the picture above the table.
    const error = (value) => -Math.log(Math.max(1 - value / 1e4, 1e-4));
    const onError = (range, value) => (100 * Math.min(1, Math.max(0, (error(value) - error(range[0])) / (error(range[1]) - error(range[0]))))).toFixed(1);
    const place = (range, value) => (100 * Math.min(1, Math.max(0, (value - range[0]) / (range[1] - range[0])))).toFixed(1);
    const moved = data.rank.map((rank, row) => (rank && data.top1rank[row] ? data.top1rank[row][0] - rank[0] : null));
    const rankText = (rank) => (rank[1] === rank[2] ? rank[1] : `${rank[1]}–${rank[2]}`);
    const columns = [
      { key: "rank", label: "Rank", group: "Entry", first: 1, always: true, value: (r) => data.rank[r] && data.rank[r][0], cell: (r) => (data.rank[r] ? rankText(data.rank[r]) : dash), csv: (r) => (data.rank[r] ? rankText(data.rank[r]) : "") },
      { key: "name", label: "Model", group: "Entry", first: 1, always: true, head: true, text: true, value: (r) => data.name[r].toLowerCase(), csv: (r) => data.name[r], cell: (r) => {
        const tags = [word(data.scope, r), word(data.state, r)].filter((w) => w !== "full" && w !== "active");
        return `<a href="entries/${encodeURIComponent(data.slug[r])}.html">${escape(data.name[r])}</a>${tags.map((t) => `<span class="tag">${escape(t)}</span>`).join("")}<span class="sub">${escape(data.families[data.family[r]])}, ${data.year[r]}</span>`;
      } },
    ];
    const ranges = {};
    for (const metric of data.metrics) {
      // What few entries have would fill its whole range: people's agreement stands between 0 and 100 %.
      const range = metric.absent && metric.group === "people" ? [0, 1e4] : span([metric]);
      columns.push({ key: metric.k, metric, label: metric.k === "top1" ? "Top-1" : metric.k === "real_accuracy" ? "People accept" : metric.k === "accepted_mistakes" ? "Wrong, yet accepted" : metric.short, long: metric.label, about: metric.about, group: (data.trackNames.find((t) => t[0] === metric.track) || ["", metric.track])[1], first: metric.less ? 1 : -1, num: true, value: (r) => metric.v[r], csv: (r) => metricCsv(metric, r), cell: (r) => {
        if (metric.v[r] === null) return metric.absent ? `<span class="quiet">${escape(metric.absent)}</span>` : dash;
        const strong = metric.group === "people";
        let html = strong ? `<b class="people">${shown(metric, r)}</b>` : shown(metric, r);
        if (metric.l) {
          const at = metric.unit === "fraction" && metric.k !== "accepted_mistakes" && !metric.absent && (metric.group === "people" || metric.group === "label") ? onError : place;
          const low = at(range, metric.v[r] + metric.l[r]), high = at(range, metric.v[r] + metric.h[r]);
          html += `<span class="ci${strong ? " people" : ""}"><i style="left:${low}%;width:${(high - low).toFixed(1)}%"></i></span><span class="hidden">, interval ${shown(metric, r, metric.v[r] + metric.l[r])} to ${shown(metric, r, metric.v[r] + metric.h[r])}</span>`;
        }
        if (metric.raters && metric.raters[r]) html += `<span class="sub">${metric.raters[r].toLocaleString("en")} raters</span>`;
        return html;
      } });
      ranges[metric.k] = range;
    }
    const extra = [];
    if (single && people) {
      const range = span([single, people]);
      const gain = (r) => (single.v[r] === null || people.v[r] === null ? null : people.v[r] - single.v[r]);
      extra.push({ key: "track", label: "From the label to people", long: "From the single label to what people accept, same images", group: "Derived", first: -1, cls: "track", value: gain, csv: (r) => (gain(r) === null ? "" : gain(r) / 1e4), cell: (r) => {
        if (gain(r) === null) return dash;
        const a = onError(range, single.v[r]), b = onError(range, people.v[r]);
        const low = onError(range, people.v[r] + (people.l ? people.l[r] : 0)), high = onError(range, people.v[r] + (people.h ? people.h[r] : 0));
        return `<span class="rail"><i class="join" style="left:${Math.min(a, b)}%;width:${Math.abs(b - a).toFixed(1)}%"></i><i class="band" style="left:${low}%;width:${(high - low).toFixed(1)}%"></i><i class="ring" style="left:${a}%"></i><i class="dot" style="left:${b}%"></i></span><span class="hidden">from ${shown(single, r)} to ${shown(people, r)} percent</span>`;
      } });
      extra.push({ key: "gain", label: "Gain", long: "Points gained from the single label to what people accept, same images", group: "Derived", first: -1, num: true, value: gain, csv: (r) => (gain(r) === null ? "" : gain(r) / 1e4), cell: (r) => (gain(r) === null ? dash : `${gain(r) < 0 ? "−" : "+"}${Math.abs(gain(r) / 100).toFixed(1)}`) });
    }
    extra.push({ key: "moved", label: "Places", long: "Places gained or lost from top-1 to what people accept", group: "Derived", first: -1, num: true, value: (r) => moved[r], csv: (r) => (moved[r] === null ? "" : moved[r]), cell: (r) => (moved[r] === null ? dash : moved[r] === 0 ? "=" : moved[r] > 0 ? `<span class="up">▲ ${moved[r]}</span><span class="hidden"> gained</span>` : `<span class="down">▼ ${-moved[r]}</span><span class="hidden"> lost</span>`) });
    extra.push({ key: "top1rank", label: "Rank by top-1", group: "Derived", first: 1, num: true, value: (r) => data.top1rank[r] && data.top1rank[r][0], csv: (r) => (data.top1rank[r] ? rankText(data.top1rank[r]) : ""), cell: (r) => (data.top1rank[r] ? rankText(data.top1rank[r]) : dash) });
    const at = columns.findIndex((column) => column.key === "top1") + 1 || 2;
    columns.splice(at, 0, ...extra.filter((column) => column.key === "track"));
    const after = columns.findIndex((column) => column.key === "real_accuracy") + 1 || columns.length;
    columns.splice(after, 0, ...extra.filter((column) => column.key !== "track"));
    const plain = (key, label, value, cell, more) => columns.push({ key, label, group: "Entry", first: 1, value, csv: (r) => (value(r) === null ? "" : value(r)), cell: (r) => (value(r) === null ? dash : cell(value(r))), ...more });
    plain("parameters", "Parameters", (r) => data.parameters[r], size, { num: true });
    if (data.throughput.length) plain("throughput", "Images/s", (r) => data.throughput[r], (v) => String(+v.toPrecision(3)), { num: true, first: -1 });
    plain("year", "Year", (r) => data.year[r], String, { num: true, first: -1 });
    plain("family", "Family", (r) => data.families[data.family[r]], escape, { text: true });
    plain("status", "Status", (r) => word(data.status, r), escape, { text: true });
    plain("tracks", "Tracks", (r) => data.trackNames.filter((_, at) => data.tracks[r] & (1 << at)).map((t) => t[1]).join(", "), escape, { text: true });
    const agreement = byKey["robustness.agreement_none"];
    const rated = agreement && agreement.v.some((value) => value !== null) ? [agreement.k] : [];
    const options = (words) => [...new Set(words)].sort().map((w) => [w, w[0].toUpperCase() + w.slice(1)]);
    const all = [...Array(rows).keys()];
    return {
      rows, columns, main, noun: ["model", "models"], file: "leaderboard", name: (r) => data.name[r], slug: (r) => data.slug[r], compare: true,
      apart: "Not ranked: scored on a sample, superseded, withdrawn or incomplete",
      haystack: (r) => `${data.name[r]} ${data.slug[r]} ${data.families[data.family[r]]} ${data.year[r]}`.toLowerCase(),
      usual: narrow ? ["top1", "real_accuracy", "moved"] : ["top1", "track", "real_accuracy", "moved", "accepted_mistakes", "mla", ...rated, "parameters"],
      sort: ["rank", 1],
      filters: [
        { key: "family", label: "Family", options: data.families.map((f) => [f, f]), test: (r, v) => data.families[data.family[r]] === v },
        { key: "year", label: "Year", range: true, get: (r) => data.year[r] },
        { key: "params", label: "Parameters, M", range: true, get: (r) => (data.parameters[r] === null ? null : data.parameters[r] / 1e6) },
        { key: "status", label: "Status", options: options(all.map((r) => word(data.status, r))), test: (r, v) => word(data.status, r) === v },
        { key: "track", label: "Has track", options: data.trackNames.map((t) => [t[0], t[1]]), test: (r, v) => { const at = data.trackNames.findIndex((t) => t[0] === v); return at >= 0 && (data.tracks[r] & (1 << at)) !== 0; } },
        { key: "scope", label: "Scope", options: options(all.map((r) => word(data.scope, r))), test: (r, v) => word(data.scope, r) === v },
        { key: "state", label: "Life cycle", options: options(all.map((r) => word(data.state, r))), test: (r, v) => word(data.state, r) === v },
      ],
      downloads: [["leaderboard.csv", "Everything, CSV"], ["leaderboard.json", "Everything, JSON"]],
    };
  }

  function classes() {
    const data = window.BEYOND_CLASSES;
    if (!data) return null;
    const rows = data.name.length;
    const share = (top, r) => (data.evaluable[r] ? top[r] / data.evaluable[r] : null);
    const bar = (value, tone) => (value === null ? dash : `${(100 * value).toFixed(0)}\u00a0%<span class="ci ${tone}"><i style="left:0;width:${(100 * value).toFixed(1)}%"></i></span>`);
    const other = (r) => share(data.others, r), rejected = (r) => (data.evaluable[r] ? 1 - data.kept[r] / data.evaluable[r] : null);
    const number = (value) => (value === null ? "" : value);
    const columns = [
      { key: "name", label: "Class", group: "Class", first: 1, always: true, head: true, text: true, value: (r) => data.name[r].toLowerCase(), csv: (r) => data.name[r], cell: (r) => `<a href="classes/${r}.html">${escape(data.name[r])}</a><span class="sub">${escape(data.kinds[data.kind[r]])}</span>` },
      { key: "others", label: "Other label accepted", group: "People", first: -1, num: true, value: other, csv: (r) => number(other(r)), cell: (r) => bar(other(r), "people") },
      { key: "rejected", label: "Label not accepted", group: "People", first: -1, num: true, value: rejected, csv: (r) => number(rejected(r)), cell: (r) => bar(rejected(r), "") },
      { key: "most", label: "Most often also", group: "People", first: 1, text: true, value: (r) => (data.most[r] === null ? null : data.name[data.most[r]]), csv: (r) => (data.most[r] === null ? "" : data.name[data.most[r]]), cell: (r) => (data.most[r] === null ? dash : `<a href="classes/${data.most[r]}.html">${escape(data.name[data.most[r]])}</a>`) },
      { key: "gain", label: "Mean gain", group: "Models", first: -1, num: true, value: (r) => data.gain[r], csv: (r) => number(data.gain[r]), cell: (r) => (data.gain[r] === null ? dash : `${data.gain[r] < 0 ? "−" : "+"}${Math.abs(data.gain[r]).toFixed(1)}`) },
      { key: "kind", label: "Broad kind", group: "Class", first: 1, text: true, value: (r) => data.kinds[data.kind[r]], csv: (r) => data.kinds[data.kind[r]], cell: (r) => escape(data.kinds[data.kind[r]]) },
      { key: "index", label: "Index", group: "Class", first: 1, num: true, value: (r) => r, csv: (r) => r, cell: (r) => String(r) },
    ];
    return {
      rows, columns, main: () => true, noun: ["class", "classes"], file: "classes", name: (r) => data.name[r], slug: String,
      haystack: (r) => `${data.name[r]} ${data.kinds[data.kind[r]]} ${data.wnid[r]} ${r}`.toLowerCase(),
      usual: narrow ? ["others", "gain"] : ["others", "rejected", "most", "gain"], sort: ["others", -1],
      filters: [{ key: "kind", label: "Broad kind", options: data.kinds.map((k) => [k, k]), test: (r, v) => data.kinds[data.kind[r]] === v }],
      downloads: [],
    };
  }

  // --------------------------------------------------------------------------------------------- the machine
  function start(root, source) {
    const find = (selector) => root.querySelector(selector);
    const table = find("table"), head = table.tHead, body = table.tBodies[0], tools = find(".tools"), live = find("[role=status]"), more = find(".more"), tray = find(".tray"), frame = find(".frame");
    const known = new Map(source.columns.map((column) => [column.key, column]));
    const texts = Array.from({ length: source.rows }, (_, row) => source.haystack(row));
    const cache = new Map();
    const values = (key) => {
      if (!cache.has(key)) cache.set(key, Array.from({ length: source.rows }, (_, row) => known.get(key).value(row)));
      return cache.get(key);
    };
    let state, order = [], drawn = 0;
    const few = source.rows <= 100;

    function read() {
      const query = new URLSearchParams(location.search);
      const sort = query.get("sort") || "";
      const key = sort.replace(/^-/, "");
      const columns = (query.get("cols") || "").split(",").filter((k) => known.has(k) && !known.get(k).always);
      state = {
        q: (query.get("q") || "").replace(/[\u0000-\u001f]+/g, " ").trim(),
        sort: known.has(key) ? [key, sort.startsWith("-") ? -1 : 1] : [...source.sort],
        cols: query.has("cols") ? columns : source.usual.filter((k) => known.has(k)),
        chosen: query.has("cols"),
        filters: {},
        picked: (query.get("pick") || "").split(",").map((slug) => (slug ? slugRow(slug) : -1)).filter((r) => r >= 0).slice(0, 2),
      };
      for (const filter of source.filters) {
        const value = query.get(filter.key);
        if (!value) continue;
        if (filter.range ? parseRange(value) : filter.options.some((option) => option[0] === value)) state.filters[filter.key] = value;
      }
    }
    const slugRow = (slug) => { for (let r = 0; r < source.rows; r++) if (source.slug(r) === slug) return r; return -1; };
    function parseRange(text) {
      const match = /^(\d*\.?\d*)\.\.(\d*\.?\d*)$/.exec(text);
      if (!match || (!match[1] && !match[2])) return null;
      return [match[1] ? +match[1] : -Infinity, match[2] ? +match[2] : Infinity];
    }
    function write() {
      const query = new URLSearchParams();
      if (state.q) query.set("q", state.q);
      if (state.sort[0] !== source.sort[0] || state.sort[1] !== source.sort[1]) query.set("sort", (state.sort[1] < 0 ? "-" : "") + state.sort[0]);
      for (const [key, value] of Object.entries(state.filters)) query.set(key, value);
      if (state.chosen) query.set("cols", state.cols.join(","));
      if (state.picked.length) query.set("pick", state.picked.map(source.slug).join(","));
      const text = query.toString().replaceAll("%2C", ",");
      try { history.replaceState(null, "", location.pathname + (text ? `?${text}` : "") + location.hash); } catch { /* a page opened from a disk in some browsers */ }
    }

    const visible = () => source.columns.filter((column) => column.always || state.cols.includes(column.key));
    function choose() {
      const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
      const tests = Object.entries(state.filters).map(([key, value]) => {
        const filter = source.filters.find((f) => f.key === key);
        if (!filter.range) return (row) => filter.test(row, value);
        const [low, high] = parseRange(value);
        return (row) => { const x = filter.get(row); return x !== null && x >= low && x <= high; };
      });
      const kept = [];
      for (let row = 0; row < source.rows; row++) {
        if (words.every((word) => texts[row].includes(word)) && tests.every((test) => test(row))) kept.push(row);
      }
      const [key, direction] = state.sort, column = values(key), tie = known.has("rank") ? values("rank") : null;
      const text = known.get(key).text;
      kept.sort((a, b) => {
        const apart = source.main(b) - source.main(a);
        if (apart) return apart;
        const x = column[a], y = column[b];
        if (x === null || y === null) { if (x !== y) return x === null ? 1 : -1; } else if (x !== y) return direction * (text ? (x < y ? -1 : 1) : x - y);
        return (tie ? (tie[a] ?? 1e9) - (tie[b] ?? 1e9) : 0) || a - b;
      });
      order = kept;
    }

    function drawHead() {
      const cells = visible().map((column) => {
        const name = column.long && column.long !== column.label ? ` title="${escape(column.long + (column.about ? ": " + column.about : ""))}"` : "";
        return `<th scope="col" data-key="${escape(column.key)}" class="${column.num ? "num" : column.cls || ""}"><button type="button"${name}>${escape(column.label)}</button></th>`;
      });
      if (source.compare) cells.push('<th scope="col" class="pick"><span class="hidden">Pick to compare</span></th>');
      head.innerHTML = `<tr>${cells.join("")}</tr>`;
    }
    function markSort() {
      for (const cell of head.querySelectorAll("th[data-key]")) {
        if (cell.dataset.key === state.sort[0]) cell.setAttribute("aria-sort", state.sort[1] > 0 ? "ascending" : "descending");
        else cell.removeAttribute("aria-sort");
      }
    }
    function rowHtml(row, at) {
      const cells = visible().map((column) => (column.head ? `<th scope="row" class="model">${column.cell(row)}</th>` : `<td class="${column.num ? "num" : column.cls || ""}">${column.cell(row)}</td>`));
      const picked = state.picked.includes(row);
      if (source.compare) cells.push(`<td class="pick"><input type="checkbox" aria-label="Compare ${escape(source.name(row))}"${picked ? " checked" : ""}></td>`);
      return `<tr data-row="${row}"${picked ? ' class="picked"' : ""}${few ? "" : ` aria-rowindex="${at + 2}"`}>${cells.join("")}</tr>`;
    }
    function draw(upTo) {
      const width = visible().length + (source.compare ? 1 : 0);
      let html = "";
      for (let at = drawn; at < Math.min(upTo, order.length); at++) {
        const apart = !source.main(order[at]) && (at === 0 || source.main(order[at - 1]));
        if (apart) html += `<tr class="apart"><td colspan="${width}">${escape(source.apart)}</td></tr>`;
        html += rowHtml(order[at], at);
      }
      if (!order.length) html = `<tr class="none"><td colspan="${width}">Nothing fits. <button type="button" class="chip" data-reset>Show everything</button></td></tr>`;
      if (drawn === 0) body.innerHTML = html; else body.insertAdjacentHTML("beforeend", html);
      drawn = Math.min(upTo, order.length);
      if (!few) table.setAttribute("aria-rowcount", order.length + 1);
      const rest = order.length - drawn;
      more.hidden = rest <= 0;
      if (rest > 0) more.innerHTML = `<button type="button" class="button" data-more="${PAGE}">Show ${Math.min(PAGE, rest)} more</button><button type="button" class="button" data-more="all">Show all ${order.length.toLocaleString("en")}</button>`;
    }
    function say() {
      const column = known.get(state.sort[0]);
      const count = order.length === source.rows ? `${source.rows.toLocaleString("en")} ${source.noun[source.rows === 1 ? 0 : 1]}` : `${order.length.toLocaleString("en")} of ${source.rows.toLocaleString("en")} ${source.noun[1]}`;
      live.textContent = `${count}, by ${column.label.toLowerCase()} ${state.sort[1] > 0 ? "ascending" : "descending"}`;
      for (const chip of root.querySelectorAll(".status .chip")) chip.remove();
      const chips = source.filters.filter((f) => f.key in state.filters).map((f) => [f.key, `${f.label}: ${f.range ? state.filters[f.key].replace("..", "–").replace(/^–/, "up to ").replace(/–$/, " or more") : (f.options.find((o) => o[0] === state.filters[f.key]) || ["", ""])[1]}`]);
      if (state.q) chips.unshift(["q", `“${state.q}”`]);
      live.insertAdjacentHTML("afterend", chips.map(([key, label]) => `<button type="button" class="chip" data-drop="${escape(key)}">${escape(label)} <span aria-hidden="true">×</span><span class="hidden">remove</span></button>`).join(""));
      const badge = tools.querySelector(".filter-count");
      const number = Object.keys(state.filters).length;
      if (badge) badge.textContent = number ? ` (${number})` : "";
    }
    function drawTray() {
      if (!source.compare) return;
      tray.hidden = !state.picked.length;
      const slugs = state.picked.map(source.slug), link = `compare.html?a=${encodeURIComponent(slugs[0] || "")}${slugs[1] ? `&b=${encodeURIComponent(slugs[1])}` : ""}`;
      tray.innerHTML = `<span>${state.picked.map((r) => escape(source.name(r))).join(" <span class=\"quiet\">and</span> ")}${state.picked.length === 1 ? ' <span class="quiet">and one more</span>' : ""}</span>${state.picked.length === 2 ? `<a class="button main" href="${escape(link)}">Compare</a>` : ""}<button type="button" class="button" data-unpick>Clear</button>`;
    }
    function update({ keep = false } = {}) {
      const wanted = keep ? Math.max(drawn, PAGE) : few ? source.rows : PAGE;
      choose();
      drawn = 0;
      draw(wanted);
      markSort();
      say();
      write();
    }

    // ------------------------------------------------------------------------------------------ the controls
    function drawTools() {
      const groups = [...new Set(source.columns.filter((c) => !c.always).map((c) => c.group))];
      const field = (filter) => {
        const id = `f-${root.dataset.board}-${filter.key}`;
        if (filter.range) return `<label for="${id}">${escape(filter.label)}</label><span class="range"><input type="number" id="${id}" data-filter="${filter.key}" data-end="0" step="any" min="0" placeholder="from"><span>to</span><input type="number" data-filter="${filter.key}" data-end="1" step="any" min="0" placeholder="to" aria-label="${escape(filter.label)}, to"></span>`;
        return `<label for="${id}">${escape(filter.label)}</label><select id="${id}" data-filter="${filter.key}"><option value="">any</option>${filter.options.map(([value, label]) => `<option value="${escape(value)}">${escape(label)}</option>`).join("")}</select>`;
      };
      tools.innerHTML = `<input type="search" placeholder="Search ${source.noun[1]}" aria-label="Search ${source.noun[1]}">
        <details><summary class="button">Filter<span class="filter-count"></span></summary><div class="panel fields">${source.filters.map(field).join("")}<span></span><button type="button" class="button" data-reset>Clear all</button></div></details>
        <details><summary class="button">Columns</summary><div class="panel checks">${groups.map((group) => `<div class="group">${escape(group)}</div>${source.columns.filter((c) => !c.always && c.group === group).map((c) => `<label title="${escape(c.about || "")}"><input type="checkbox" data-column="${escape(c.key)}"> ${escape(c.long && c.metric ? `${c.label}: ${c.long}` : c.label)}</label>`).join("")}`).join("")}</div></details>
        <details><summary class="button">Download</summary><div class="panel list">${source.downloads.map(([file, label]) => `<a href="${file}" download>${label}</a>`).join("")}<button type="button" data-save="csv">This view, CSV</button><button type="button" data-save="json">This view, JSON</button></div></details>`;
      tools.hidden = false;
    }
    function fillTools() {
      const search = tools.querySelector("input[type=search]");
      if (document.activeElement !== search) search.value = state.q;
      for (const input of tools.querySelectorAll("[data-filter]")) {
        const value = state.filters[input.dataset.filter] || "";
        input.value = input.dataset.end === undefined ? value : value ? value.split("..")[+input.dataset.end] : "";
      }
      for (const box of tools.querySelectorAll("[data-column]")) box.checked = state.cols.includes(box.dataset.column);
    }
    function setFilter(key, value) { if (value) state.filters[key] = value; else delete state.filters[key]; }
    function reset() { state.q = ""; state.filters = {}; tools.querySelector("input[type=search]").value = ""; fillTools(); update(); }

    head.addEventListener("click", (event) => {
      const cell = event.target.closest("th[data-key]");
      if (!cell || !event.target.closest("button")) return;
      const key = cell.dataset.key;
      state.sort = [key, state.sort[0] === key ? -state.sort[1] : known.get(key).first];
      update();
    });
    tools.addEventListener("input", (event) => {
      const input = event.target;
      if (input.type === "search") { state.q = input.value.trim(); update(); return; }
      if (input.dataset.filter) {
        const key = input.dataset.filter;
        if (input.dataset.end === undefined) setFilter(key, input.value);
        else {
          const [from, to] = tools.querySelectorAll(`[data-filter="${key}"]`);
          const text = `${from.value}..${to.value}`;
          setFilter(key, parseRange(text) ? text : "");
        }
        update();
      } else if (input.dataset.column) {
        state.cols = source.columns.map((c) => c.key).filter((key) => { const box = tools.querySelector(`[data-column="${CSS.escape(key)}"]`); return box && box.checked; });
        state.chosen = state.cols.join() !== source.usual.filter((k) => known.has(k)).join();
        drawHead();
        update({ keep: true });
      }
    });
    root.addEventListener("click", (event) => {
      const target = event.target.closest("button");
      if (!target) return;
      if (target.dataset.reset !== undefined) reset();
      else if (target.dataset.drop !== undefined) {
        if (target.dataset.drop === "q") { state.q = ""; tools.querySelector("input[type=search]").value = ""; } else delete state.filters[target.dataset.drop];
        fillTools();
        update();
        (root.querySelector(".status .chip") || tools.querySelector("summary")).focus();
      } else if (target.dataset.more) {
        const from = drawn;
        draw(target.dataset.more === "all" ? order.length : drawn + PAGE);
        const next = body.querySelector(`tr[data-row="${order[from]}"] a`);
        if (next) next.focus({ preventScroll: true });
      } else if (target.dataset.unpick !== undefined) { state.picked = []; for (const box of body.querySelectorAll(".pick input:checked")) { box.checked = false; box.closest("tr").classList.remove("picked"); } drawTray(); write(); } else if (target.dataset.save) save(target.dataset.save);
    });
    body.addEventListener("change", (event) => {
      const line = event.target.closest("tr[data-row]");
      if (!line) return;
      const row = +line.dataset.row;
      if (event.target.checked) state.picked.push(row); else state.picked = state.picked.filter((r) => r !== row);
      while (state.picked.length > 2) state.picked.shift();
      for (const other of body.querySelectorAll("tr[data-row]")) {
        const on = state.picked.includes(+other.dataset.row);
        other.classList.toggle("picked", on);
        other.querySelector(".pick input").checked = on;
      }
      drawTray();
      write();
    });
    const point = (row) => document.dispatchEvent(new CustomEvent("beyond:row", { detail: row }));
    body.addEventListener("pointerover", (event) => { const line = event.target.closest("tr[data-row]"); point(line ? +line.dataset.row : null); });
    body.addEventListener("pointerleave", () => point(null));
    document.addEventListener("click", (event) => { for (const box of tools.querySelectorAll("details[open]")) if (!box.contains(event.target)) box.open = false; });
    tools.addEventListener("keydown", (event) => {
      const box = event.target.closest("details[open]");
      if (event.key === "Escape" && box) { box.open = false; box.querySelector("summary").focus(); event.stopPropagation(); }
    });
    tools.addEventListener("toggle", (event) => {
      if (!event.target.open) return;
      for (const other of tools.querySelectorAll("details[open]")) if (other !== event.target) other.open = false;
      const panel = event.target.querySelector(".panel");
      panel.style.left = "0";
      const over = panel.getBoundingClientRect().right - document.documentElement.clientWidth + 12;
      if (over > 0) panel.style.left = `${-over}px`;
    }, true);
    window.addEventListener("popstate", () => { read(); drawHead(); fillTools(); update(); drawTray(); });

    function save(kind) {
      const columns = visible().filter((c) => c.csv);
      const records = order.map((row) => Object.fromEntries([["slug", source.slug(row)], ...columns.map((c) => [c.key, c.csv(row)])]));
      let text;
      if (kind === "json") text = JSON.stringify(records, (_, value) => (value === "" ? undefined : value), 1);
      else {
        const cell = (value) => { const plain = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value); return /[",\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain; };
        text = [["slug", ...columns.map((c) => c.key)], ...records.map(Object.values)].map((line) => line.map(cell).join(",")).join("\n") + "\n";
      }
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: kind === "json" ? "application/json" : "text/csv" }));
      link.download = `${source.file}-view.${kind}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }

    read();
    drawTools();
    drawHead();
    fillTools();
    update();
    drawTray();
    frame.dataset.ready = "";
  }

  for (const root of document.querySelectorAll(".board-app")) {
    const source = root.dataset.board === "classes" ? classes() : models();
    if (source) start(root, source);
  }
})();
