/* What a pointer or the arrow keys point at in the pictures: the mark nearest to it, with its numbers. The pictures
   themselves are drawn when the site is built and need no script. */
(() => {
  "use strict";
  const data = window.BEYOND;
  if (!data) return;
  const metric = Object.fromEntries(data.metrics.map((m) => [m.k, m]));
  const base = document.currentScript.src.replace(/assets\/leaderboard\/plots\.js.*$/, "");
  const SVG = "http://www.w3.org/2000/svg";
  const value = (key, row) => {
    if (key === "rank" || key === "top1rank") return data[key][row] && data[key][row][0];
    if (key === "parameters" || key === "throughput") return data[key].length ? data[key][row] : null;
    const found = metric[key];
    return !found || (found.v[row] ?? null) === null ? null : found.unit === "fraction" ? found.v[row] / 1e4 : found.v[row];
  };
  const text = (key, row) => {
    const found = value(key, row);
    if (key === "parameters") return found === null ? "" : `${+(found / 1e6).toPrecision(3)} M parameters`;
    if (key === "throughput") return `${+found.toPrecision(3)} images/s`;
    if (key === "rank") return `rank ${found} by what people accept`;
    if (key === "top1rank") return `rank ${found} by top-1`;
    const name = { top1_evaluable: "single label", real_accuracy: "people", top1: "top-1", accepted_mistakes: "of the answers called wrong are accepted" }[key] || metric[key].short;
    return metric[key].unit === "fraction" ? `${(100 * found).toFixed(2)} % ${name}` : `${found} ${name}`;
  };
  const figures = [];

  function start(figure) {
    const { kind, x: xKey, y: yKey } = figure.dataset;
    const low = +figure.dataset.low, high = +figure.dataset.high, xLow = +figure.dataset.xlow, xHigh = +figure.dataset.xhigh, last = +figure.dataset.last;
    const canvas = figure.querySelector(".canvas");
    const scales = { linear: (v) => v, log: Math.log, error: (v) => -Math.log(Math.max(1 - v, 1e-4)) };
    const at = (kind, v, from, to) => (scales[kind](v) - scales[kind](from)) / (scales[kind](to) - scales[kind](from));
    const down = (v) => 1 - at("error", v, low, high);
    const marks = [];
    data.slug.forEach((_, row) => {
      const x = value(xKey, row), y = value(yKey, row);
      if (data.rank[row] === null || x === null || y === null) return;
      if (kind === "slope") marks.push({ row, a: down(x), b: down(y) });
      else if (kind === "ranks") marks.push({ row, a: (x - 0.5) / last, b: (y - 0.5) / last });
      else marks.push({ row, a: at(figure.dataset.xscale, x, xLow, xHigh), b: 1 - at(figure.dataset.yscale, y, low, high) });
    });
    if (!marks.length) return;
    const order = [...marks].sort((p, q) => p.b - q.b || p.row - q.row);
    const over = document.createElementNS(SVG, "svg"), group = document.createElementNS(SVG, "svg");
    over.setAttribute("class", "over"); group.setAttribute("class", "over family");
    over.setAttribute("aria-hidden", "true"); group.setAttribute("aria-hidden", "true");
    const tip = document.createElement("div");
    tip.className = "tip"; tip.hidden = true; tip.setAttribute("aria-hidden", "true");
    const live = document.createElement("p");
    live.className = "hidden"; live.setAttribute("aria-live", "polite");
    canvas.append(group, over, tip);
    figure.append(live);
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "group");
    canvas.setAttribute("aria-label", `${canvas.querySelector("svg").getAttribute("aria-label")} Arrow keys go from model to model, Enter opens its page.`);
    let current = null, cursor = null; // what is pointed at, and where the keys are

    function shape(mark) {
      const p = (v) => `${(100 * v).toFixed(2)}%`;
      if (kind === "scatter") return `<circle cx="${p(mark.a)}" cy="${p(mark.b)}" r="7"/>`;
      const d = kind === "slope" ? `M0 ${100 * mark.a}L1 ${100 * mark.b}` : `M0 ${100 * mark.a}C.45 ${100 * mark.a} .55 ${100 * mark.b} 1 ${100 * mark.b}`;
      return `<svg width="100%" height="100%" viewBox="0 0 1 100" preserveAspectRatio="none" overflow="visible"><path d="${d}"/></svg><circle cx="0" cy="${p(mark.a)}" r="5"/><circle cx="100%" cy="${p(mark.b)}" r="5"/>`;
    }
    function show(mark, { speak = false, x = null } = {}) {
      current = mark;
      over.innerHTML = mark ? shape(mark) : "";
      tip.hidden = !mark;
      if (!mark) return;
      const rank = data.rank[mark.row], moved = data.top1rank[mark.row] ? data.top1rank[mark.row][0] - rank[0] : 0;
      const lines = [...new Set([text(xKey, mark.row), text(yKey, mark.row), `rank ${rank[1] === rank[2] ? rank[1] : `${rank[1]}–${rank[2]}`}${moved ? `, ${moved > 0 ? "gains" : "loses"} ${Math.abs(moved)} from top-1` : ""}`])];
      tip.replaceChildren();
      const name = document.createElement("b");
      name.textContent = data.name[mark.row];
      tip.append(name, ...lines.flatMap((line, at) => (at ? [document.createElement("br"), line] : [line])));
      const box = canvas.getBoundingClientRect();
      const across = kind === "scatter" ? mark.a : x === null ? 0.5 : x;
      const up = kind === "scatter" ? mark.b : mark.a + (mark.b - mark.a) * across;
      const left = Math.min(Math.max(across * box.width + 14, 0), box.width + 60 - tip.offsetWidth);
      tip.style.left = `${left}px`;
      tip.style.top = `${up * box.height > box.height / 2 ? up * box.height - tip.offsetHeight - 14 : up * box.height + 14}px`;
      if (speak) live.textContent = `${data.name[mark.row]}: ${lines.join(", ")}`;
    }
    function nearest(event) {
      const box = canvas.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
      const t = Math.min(1, Math.max(0, x)), ease = kind === "ranks" ? t * t * (3 - 2 * t) : t;
      let best = null, least = Infinity;
      for (const mark of marks) {
        const far = kind === "scatter" ? Math.hypot((mark.a - x) * box.width, (mark.b - y) * box.height) : Math.abs(mark.a + (mark.b - mark.a) * ease - y) * box.height;
        if (far < least) { least = far; best = mark; }
      }
      return [least < 40 ? best : null, t];
    }
    let touched = null;
    canvas.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") { const [mark, x] = nearest(event); show(mark, { x }); } });
    canvas.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") show(null); });
    canvas.addEventListener("pointerdown", (event) => { touched = event.pointerType === "touch" ? current : null; if (event.pointerType === "touch") { const [mark, x] = nearest(event); show(mark, { x }); } });
    canvas.addEventListener("click", (event) => { if (current && (event.pointerType !== "touch" || touched === current)) open(current); });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      if (step) {
        const at = cursor ? order.indexOf(cursor) + step : step > 0 ? 0 : order.length - 1;
        cursor = order[Math.min(order.length - 1, Math.max(0, at))];
        show(cursor, { speak: true });
        event.preventDefault();
      } else if (event.key === "Home" || event.key === "End") { cursor = order[event.key === "Home" ? 0 : order.length - 1]; show(cursor, { speak: true }); event.preventDefault(); } else if (event.key === "Enter" && (cursor || current)) open(cursor || current);
      else if (event.key === "Escape") show(null);
    });
    canvas.addEventListener("blur", () => { cursor = null; show(null); });
    const open = (mark) => { location.href = `${base}entries/${encodeURIComponent(data.slug[mark.row])}.html`; };
    figures.push({
      row: (row) => show(row === null ? null : marks.find((mark) => mark.row === row) || null),
      family: (at) => {
        canvas.classList.toggle("dim", at !== null);
        group.innerHTML = at === null ? "" : marks.filter((mark) => data.family[mark.row] === at).map(shape).join("").replaceAll('r="7"', 'r="5"');
      },
    });
  }
  for (const figure of document.querySelectorAll("figure.plot[data-kind]")) if (figure.dataset.x) start(figure);
  document.addEventListener("beyond:row", (event) => { for (const figure of figures) figure.row(event.detail); });

  const chooser = document.querySelector(".chooser");
  if (chooser) {
    const select = chooser.querySelector("select");
    for (const [at, family] of data.families.entries()) select.append(new Option(family, String(at)));
    const apply = () => { for (const figure of figures) figure.family(select.value === "" ? null : +select.value); };
    const wanted = data.families.indexOf(new URLSearchParams(location.search).get("family"));
    if (wanted >= 0) { select.value = String(wanted); apply(); }
    select.addEventListener("change", () => {
      apply();
      const query = select.value === "" ? "" : `?${new URLSearchParams({ family: data.families[+select.value] })}`;
      try { history.replaceState(null, "", location.pathname + query); } catch { /* opened from a disk */ }
    });
    chooser.hidden = false;
  }
})();
