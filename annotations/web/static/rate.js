// The rater's page: one picture, one label, one key. The next pictures are decoded ahead; an answer goes to
// disk here, then to the server, and the page never waits for the network in between.

import { Outbox, newKey } from "./outbox.js";

const KEYS = { KeyY: "yes", KeyN: "no", KeyM: "maybe" };
const STEPS = new Set(["practice", "qualification", "work"]);
const AHEAD = 24; // pictures decoded before they are needed
const BEHIND = 5; // pictures kept for undo

const root = document.getElementById("rate");
const STUDY = document.body.classList.contains("study");
const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";

// Elements ---------------------------------------------------------------------------------------------------

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria") || name === "role") made.setAttribute(name.replace(/^aria/, "aria-").toLowerCase(), value);
    else if (name === "data") Object.assign(made.dataset, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

const kbd = (text) => element("kbd", { ariaHidden: "true" }, text);

const view = {
  bar: element("div", { className: "bar", role: "progressbar", ariaLabel: "Progress" }, element("span")),
  count: element("span", { className: "count" }),
  saved: element("span", { className: "saved", role: "status" }),
  figure: element("div", { className: "picture" }),
  beside: element("div", { className: "picture" }),
  caption: element("figcaption", {}, ""),
  label: element("strong", { className: "label" }),
  gloss: element("p", { className: "gloss" }),
  references: element("div", { className: "references", hidden: true }),
  feedback: element("div", { className: "feedback", hidden: true, role: "status" }),
  live: element("p", { className: "visually-hidden", role: "status", ariaLive: "polite" }),
  note: element("div", { className: "note", hidden: true, role: "dialog", ariaModal: "true" }),
  buttons: {
    yes: element("button", { type: "button", className: "answer yes", data: { answer: "yes" } }, "Yes ", kbd("Y")),
    no: element("button", { type: "button", className: "answer no", data: { answer: "no" } }, "No ", kbd("N")),
    maybe: element("button", { type: "button", className: "answer maybe", data: { answer: "maybe" } }, "Maybe ", kbd("M")),
  },
  undo: element("button", { type: "button", className: "undo", disabled: true }, "Undo ", kbd("U")),
  zoom: element("button", { type: "button", className: "zoom", ariaPressed: "false" }, "Zoom ", kbd("Z")),
};
view.second = element("figure", { className: "second", hidden: true }, view.beside, view.caption);
for (const [code, answer] of Object.entries(KEYS)) view.buttons[answer].setAttribute("aria-keyshortcuts", code.slice(3));
view.undo.setAttribute("aria-keyshortcuts", "U");
view.zoom.setAttribute("aria-keyshortcuts", "Z");

function build() {
  root.replaceChildren(
    element("div", { className: "status" }, view.bar, element("div", { className: "line" }, view.count, view.saved)),
    element(
      "div",
      { className: "stage" },
      element(
        "div",
        { className: "panels" },
        element("figure", {}, view.figure, STUDY ? element("figcaption", {}, "The photograph") : ""),
        view.second,
      ),
    ),
    element(
      "section",
      { className: "ask", ariaLabel: "Question" },
      element("h1", { className: "question" }, element("span", {}, "Does this label apply?"), view.label),
      view.gloss,
      view.references,
      view.feedback,
      element("div", { className: "answers", role: "group", ariaLabel: "Your answer" }, ...Object.values(view.buttons)),
      element("div", { className: "tools" }, view.undo, view.zoom),
    ),
    view.note,
    view.live,
  );
}

// State ------------------------------------------------------------------------------------------------------

let csrf = meta("csrf");
let settings = { prefetch: 16, minimum_dwell_ms: 250, maybe_allowed: true, break_every: 250 };
let progress = null;
let outbox = null;
let queue = []; // questions to show, first is on screen
let shownAt = 0; // performance.now() when the picture on screen was painted; 0 before
let busy = false; // an answer is being written, or feedback is on screen
let onContinue = null; // what Enter does while a note or feedback is up
let active = true; // this tab is the one in use
let sinceBreak = 0;
let turns = 0; // how often a question was shown
const history = []; // questions answered here, latest last, for undo
const pending = new Set(); // tokens whose answer is in the outbox
const returning = new Set(); // undone after a reload: their questions come back from the server, to the front
const pictures = new Map(); // token -> promise of decoded images

// Pictures ---------------------------------------------------------------------------------------------------

async function decode(question, address, alt) {
  for (let attempt = 0; ; attempt += 1) {
    const image = new Image();
    image.alt = alt;
    image.draggable = false;
    image.src = attempt ? `${address}?again=${attempt}` : address;
    try {
      await image.decode();
      return image;
    } catch {
      if (queue[0]?.id === question.id) say("The picture has not arrived yet; trying again.");
      await new Promise((wake) => setTimeout(wake, Math.min(500 * 2 ** attempt, 8000)));
    }
  }
}

// The photograph and, in some studies, a second picture beside it; they are shown at the same moment.
function picture(question) {
  if (!pictures.has(question.id)) {
    const both = [decode(question, question.image, "Photograph to judge")];
    if (question.beside) both.push(decode(question, question.beside, question.caption));
    pictures.set(question.id, Promise.all(both));
  }
  return pictures.get(question.id);
}

function decodeAhead() {
  for (const question of queue.slice(0, AHEAD)) picture(question);
}

// Showing ----------------------------------------------------------------------------------------------------

function say(text) {
  view.live.textContent = text;
}

function enable(on) {
  for (const [answer, button] of Object.entries(view.buttons)) {
    button.disabled = !on;
    button.hidden = answer === "maybe" && !settings.maybe_allowed;
  }
}

async function show() {
  const question = queue[0];
  const turn = (turns += 1); // shown again, as after a note, a question waits anew
  shownAt = 0;
  enable(false);
  zoom(false);
  drawStatus();
  if (!question) {
    view.figure.replaceChildren(element("p", { className: "quiet" }, "Fetching questions…"));
    view.second.hidden = true;
    view.label.textContent = "";
    view.gloss.textContent = "";
    return;
  }
  view.label.textContent = question.label;
  view.gloss.textContent = question.gloss ?? "";
  showReferences(question.references ?? []);
  const [image, beside] = await picture(question);
  if (turn !== turns) return;
  view.figure.replaceChildren(image);
  view.second.hidden = !beside;
  view.beside.replaceChildren(...(beside ? [beside] : []));
  view.caption.textContent = beside ? question.caption : "";
  requestAnimationFrame(() => {
    if (turn !== turns || queue[0] !== question) return;
    shownAt = performance.now();
    root.dataset.shown = question.id;
    say(`Question ${question.position}. Does the label ${question.label} apply? ${question.gloss ?? ""}`);
    setTimeout(() => turn === turns && queue[0] === question && !busy && enable(true), settings.minimum_dwell_ms);
  });
  decodeAhead();
}

function showReferences(addresses) {
  view.references.hidden = addresses.length === 0;
  view.references.replaceChildren(
    ...(addresses.length ? [element("span", {}, "For comparison:")] : []),
    ...addresses.map((address, at) => element("img", { src: address, alt: `Example ${at + 1} of the label`, loading: "lazy" })),
  );
}

function drawStatus() {
  if (!progress) return;
  const step = progress.stage !== "work" && progress.step_of > 0;
  const name = { practice: "Practice", qualification: "Qualification" }[progress.stage] ?? "";
  const ahead = pendingAnswers();
  const now = (step ? progress.step_done : progress.answered) + ahead;
  const of = step ? progress.step_of : progress.quota;
  view.count.textContent = `${name ? `${name} · ` : ""}${now.toLocaleString()}${of ? ` of ${of.toLocaleString()}` : " answered"}`;
  view.bar.hidden = !of;
  if (of) {
    view.bar.firstChild.style.setProperty("inline-size", `${Math.min(100, (100 * now) / of)}%`);
    view.bar.setAttribute("aria-valuenow", String(Math.min(now, of)));
    view.bar.setAttribute("aria-valuemax", String(of));
    view.bar.setAttribute("aria-valuetext", view.count.textContent);
  }
  view.undo.disabled = busy || (history.length === 0 && (progress.undoable ?? []).length === 0);
}

const pendingAnswers = () => pending.size;

function drawSaved(state, waiting) {
  root.dataset.saved = state;
  const text = {
    saved: "All answers saved",
    sending: "Saving…",
    offline: `No connection. ${waiting} answer${waiting === 1 ? "" : "s"} kept here; go on, they are sent later.`,
  }[state];
  if (view.saved.textContent !== text) view.saved.textContent = text;
}

// A note over the page: a break, the end of a round, another tab.
function note(title, text, action, then) {
  const button = element("button", { type: "button", className: "go" }, action, " ", kbd("Enter"));
  view.note.replaceChildren(element("div", { className: "card" }, element("h2", {}, title), element("p", {}, text), button));
  view.note.setAttribute("aria-label", title);
  view.note.hidden = false;
  busy = true;
  enable(false);
  onContinue = () => {
    onContinue = null;
    view.note.hidden = true;
    busy = false;
    then();
  };
  button.onclick = () => onContinue?.();
  button.focus();
}

function zoom(on, x = 50, y = 50) {
  view.zoom.setAttribute("aria-pressed", String(on));
  for (const panel of [view.figure, view.beside]) {
    panel.classList.toggle("zoomed", on);
    panel.style.setProperty("--x", `${x}%`);
    panel.style.setProperty("--y", `${y}%`);
  }
}

// Answering --------------------------------------------------------------------------------------------------

async function answer(what) {
  const question = queue[0];
  if (busy || !active || !question || !shownAt || view.buttons[what].hidden) return;
  const took = performance.now() - shownAt;
  if (took < settings.minimum_dwell_ms) return;
  busy = true;
  enable(false);
  const item = {
    key: newKey(),
    kind: "answer",
    question: question.id,
    answer: what,
    response_ms: Math.round(took),
    at: Date.now() / 1000,
  };
  pending.add(question.id);
  try {
    await outbox.add(item);
  } catch (error) {
    pending.delete(question.id);
    note("This browser cannot store your answer", `${error}. Free some disk space, then try again.`, "Try again", show);
    return;
  }
  queue.shift();
  history.push(question);
  const gone = history.at(-1 - BEHIND);
  if (gone && queue[0]?.id !== gone.id) pictures.delete(gone.id);
  if (history.length > 50) history.shift();
  if (question.purpose === "work") {
    busy = false;
    sinceBreak += 1;
    if (settings.break_every && sinceBreak >= settings.break_every) {
      sinceBreak = 0;
      note("Time for a break?", `That were ${settings.break_every} answers. Rest your eyes; nothing is lost.`, "Go on", show);
    } else show();
    send();
  } else {
    view.label.textContent = question.label;
    awaited.set(item.key, question);
    send(); // the outcome, with its feedback, moves on
  }
}

const awaited = new Map(); // key -> question, in practice and qualification

function outcome(key, feedback) {
  const question = awaited.get(key);
  awaited.delete(key);
  const goOn = () => {
    onContinue = null;
    view.feedback.hidden = true;
    busy = false;
    show();
  };
  if (!feedback) return goOn();
  const words = feedback.right ? "Right." : `Not quite: the answer is ${feedback.expected}.`;
  view.feedback.className = `feedback ${feedback.right ? "right" : "wrong"}`;
  const button = element("button", { type: "button", className: "go" }, "Go on ", kbd("Enter"));
  button.onclick = goOn;
  view.feedback.replaceChildren(element("strong", {}, words), element("span", {}, feedback.explanation ?? ""), button);
  view.feedback.hidden = false;
  say(`${question.label}: ${words} ${feedback.explanation ?? ""}`);
  onContinue = goOn;
  button.focus({ preventScroll: true });
}

async function undo() {
  if (busy || !active) return;
  const last = history.at(-1);
  const token = last?.id ?? progress?.undoable?.[0];
  if (!token) return;
  busy = true;
  await outbox.add({ key: newKey(), kind: "undo", question: token, at: Date.now() / 1000 });
  pending.delete(token);
  history.pop();
  busy = false;
  if (last) {
    queue.unshift(last);
    say("Undone.");
    show();
  } else returning.add(token);
  send();
}

// The server -------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function call(path, body) {
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers: body ? { "Content-Type": "application/json", "X-CSRF-Token": csrf } : {},
    body: body && JSON.stringify(body),
    credentials: "same-origin",
    cache: "no-store",
    signal: AbortSignal.timeout(20_000),
  });
  if (!response.ok) {
    const message = (await response.json().catch(() => ({}))).error ?? response.statusText;
    throw new Refused(response.status, message, Number(response.headers.get("Retry-After")) || 0);
  }
  return response.json();
}

let sending = false;
let again = false;
let failures = 0;
let timer = 0;

// One request at a time; whatever was added meanwhile goes with the next.
async function send() {
  if (sending || !active) {
    again = true;
    return;
  }
  sending = true;
  clearTimeout(timer);
  try {
    do {
      again = false;
      const items = (await outbox.items()).slice(0, 200);
      const want = Math.max(0, settings.prefetch - queue.length);
      if (items.length === 0 && want === 0) break;
      if (items.length) drawSaved("sending", items.length);
      const body = {
        items: items.map(({ order, owner, ...item }) => item),
        want: settings.prefetch,
      };
      const reply = await call("/api/answers", body);
      failures = 0;
      await settle(items, reply);
      if (reply.questions.length === 0 && items.length === 0) break;
      const left = await outbox.items();
      again ||= left.length > 0;
    } while (again);
    drawSaved("saved", 0);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) {
      note("You are signed out", "Your answers are kept in this browser. Open your invitation link again to go on.", "Reload", () =>
        location.assign("/"),
      );
      return;
    }
    if (error instanceof Refused && error.status === 403) await refresh().catch(() => {});
    failures += 1;
    const left = await outbox.items();
    drawSaved("offline", left.filter((item) => item.kind === "answer").length);
    const wait = (error instanceof Refused && error.retryAfter * 1000) || Math.min(500 * 2 ** failures, 10_000);
    timer = setTimeout(send, wait);
  } finally {
    sending = false;
  }
}

async function settle(items, reply) {
  const of = new Map(items.map((item) => [item.key, item]));
  const settled = reply.outcomes.filter((entry) => of.has(entry.key));
  await outbox.remove(settled.map((entry) => of.get(entry.key)));
  const before = progress?.stage;
  progress = reply.progress;
  for (const entry of settled) {
    const item = of.get(entry.key);
    if (entry.status === "refused") {
      // Not ours to answer (any more): held by another tab until now, or its lease ran out.
      drop(item.question);
    }
    if (awaited.has(entry.key)) outcome(entry.key, entry.feedback);
  }
  await countPending(); // what was answered while the request was under way is still in the outbox
  take(reply.questions);
  drawStatus();
  moved(before);
}

async function countPending() {
  pending.clear();
  for (const item of await outbox.items()) {
    if (item.kind === "answer") pending.add(item.question);
    else pending.delete(item.question);
  }
}

function drop(token) {
  const at = history.findIndex((question) => question.id === token);
  if (at >= 0) history.splice(at, 1);
}

// Adds what is neither here nor answered here.
function take(questions) {
  const here = new Set(queue.map((question) => question.id));
  const fresh = questions.filter((question) => !here.has(question.id) && !pending.has(question.id));
  const first = queue[0];
  queue.unshift(...fresh.filter((question) => returning.delete(question.id)));
  queue.push(...fresh.filter((question) => !queue.includes(question)));
  if (queue[0] !== first && !busy) show();
  decodeAhead();
}

function moved(before) {
  const stage = progress.stage;
  if (!STEPS.has(stage)) {
    if (!onContinue && awaited.size === 0) leave();
    else setTimeout(() => moved(before), 300);
    return;
  }
  if (queue.length === 0 && progress.waiting) {
    view.figure.replaceChildren(
      element("p", { className: "quiet" }, "Others are answering the last questions. New ones may come: this page asks again by itself."),
    );
    clearTimeout(timer);
    timer = setTimeout(send, 5000);
    return;
  }
  if (before && before !== stage && STEPS.has(before)) {
    const wait = () => {
      if (onContinue || awaited.size) return setTimeout(wait, 200);
      const [title, text] =
        stage === "qualification"
          ? ["Practice is over", `Now ${progress.step_of} questions that show that the task is clear to you. Take your time.`]
          : ["You are in", "From here on it is the real work. You can stop at any time: every answer is saved at once."];
      note(title, text, "Start", show);
      return undefined;
    };
    wait();
  }
}

async function leave() {
  if ((await outbox.items()).length) return send();
  location.assign("/");
  return undefined;
}

async function refresh() {
  const state = await call("/api/state");
  csrf = state.csrf;
  progress = state.progress;
  settings = { ...settings, ...state.settings };
}

// Another tab ------------------------------------------------------------------------------------------------

const channel = "BroadcastChannel" in window ? new BroadcastChannel("beyond-rate") : null;
const me = newKey();

function claim() {
  active = true;
  channel?.postMessage(me);
}

channel?.addEventListener("message", (event) => {
  if (event.data === me || !active) return;
  active = false;
  note("Open in another tab", "You went on with this in another tab or window.", "Use this one", async () => {
    claim();
    queue = [];
    pictures.clear();
    history.length = 0;
    await send();
    show();
  });
});

// Wiring -----------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target instanceof HTMLElement && /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  if (onContinue) {
    if (event.code === "Enter" || event.code === "NumpadEnter") {
      event.preventDefault();
      onContinue();
    }
    return;
  }
  if (KEYS[event.code]) {
    event.preventDefault();
    answer(KEYS[event.code]);
  } else if (event.code === "KeyU" || event.code === "Backspace") {
    event.preventDefault();
    undo();
  } else if (event.code === "KeyZ") {
    zoom(!view.figure.classList.contains("zoomed"));
  } else if (event.code === "Escape") zoom(false);
});
for (const button of Object.values(view.buttons)) button.addEventListener("click", () => answer(button.dataset.answer));
view.undo.addEventListener("click", undo);
view.zoom.addEventListener("click", () => zoom(!view.figure.classList.contains("zoomed")));
for (const panel of [view.figure, view.beside]) {
  const zoomAt = (on, event) => {
    const box = panel.getBoundingClientRect();
    zoom(on, (100 * (event.clientX - box.left)) / box.width, (100 * (event.clientY - box.top)) / box.height);
  };
  panel.addEventListener("click", (event) => zoomAt(!panel.classList.contains("zoomed"), event));
  panel.addEventListener("pointermove", (event) => panel.classList.contains("zoomed") && zoomAt(true, event));
}
// What was answered goes out first: whoever has stopped may not be able to send it any more.
document.querySelector("a.stop")?.addEventListener("click", async (event) => {
  event.preventDefault();
  for (let attempt = 0; attempt < 50; attempt += 1) {
    if (!outbox || (await outbox.items()).length === 0) return location.assign("/stop");
    send();
    await new Promise((wake) => setTimeout(wake, 100));
  }
  note("Your answers are not sent yet", "There is no connection. They are kept in this browser; try again later.", "Go on", show);
  return undefined;
});
window.addEventListener("online", () => {
  failures = 0;
  send();
});

async function start() {
  build();
  enable(false);
  try {
    outbox = await Outbox.open(meta("rater") || "me");
  } catch (error) {
    note("This browser keeps no answers", `Private windows of some browsers forbid it (${error}). Use an ordinary window.`, "Try again", () =>
      location.reload(),
    );
    return;
  }
  claim();
  await countPending();
  for (;;) {
    try {
      await refresh();
      break;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) return location.assign("/");
      drawSaved("offline", pendingAnswers());
      await new Promise((wake) => setTimeout(wake, 2000));
    }
  }
  if (!STEPS.has(progress.stage) && pending.size === 0) return location.assign("/");
  show();
  await send();
  return undefined;
}

start();
