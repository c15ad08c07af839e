// The playground: choose between texts, watch where you come to stand, and see a ranking change.

const RETRIES = 3;
const RETRIED = new Set([429, 503]);
const LONGEST_WAIT_SECONDS = 60;
const OWN = "own";
const PROMPT_SHOWN = 90;
const MARGIN = 26;
const SVG = "http://www.w3.org/2000/svg";
const CHOICE_KEYS = { a: 0, 1: 0, arrowleft: 0, b: 1, 2: 1, arrowright: 1 };

const state = {
  key: null,
  bundle: null,
  user: null,
  record: null,
  question: null,
  texts: null,
  trail: [],
  visit: new AbortController(),
  ranking: new AbortController(),
  work: { sending: 0, loading: 0, scoring: 0 },
};

// ---- Small helpers

const byId = (id) => document.getElementById(id);
const count = (number, one) => `${number.toLocaleString("en-GB")} ${one}${number === 1 ? "" : "s"}`;

function make(name, { className = "", text = "", ...properties } = {}) {
  const element = Object.assign(document.createElement(name), properties);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function shorten(text, limit) {
  const characters = [...text.replace(/\s+/g, " ").trim()];
  return characters.slice(0, limit).join("") + (characters.length > limit ? "…" : "");
}

// crypto.randomUUID is missing on plain http, except on the own machine; getRandomValues never is.
function randomHex(bytes) {
  return [...crypto.getRandomValues(new Uint8Array(bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A browser that keeps nothing for sites throws on the mere mention of sessionStorage.
const storage = (() => {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
})();

// ---- The API

class Failure extends Error {
  constructor(status, message, fix = "", where = "") {
    super(message);
    Object.assign(this, { status, fix, where });
  }
}

async function call(method, path, { body, idempotencyKey, signal } = {}) {
  const headers = { Authorization: `Bearer ${state.key}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (idempotencyKey) headers["Idempotency-Key"] = idempotencyKey;
  const request = { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" };
  for (let attempt = 0; ; attempt += 1) {
    const response = await orFailure(fetch(path, request), signal, "The service cannot be reached.");
    if (response.ok) return orFailure(response.json(), signal, "The answer of the service cannot be read.");
    if (!RETRIED.has(response.status) || attempt === RETRIES) throw await failureOf(response);
    await waitToRetry(response, attempt, signal);
  }
}

async function orFailure(promise, signal, message) {
  try {
    return await promise;
  } catch (error) {
    throw signal?.aborted ? error : new Failure(0, message, "Check that it runs, and try again.");
  }
}

async function failureOf(response) {
  const told = (await response.json().catch(() => null))?.error;
  return new Failure(response.status, told?.message ?? `The service answered ${response.status}.`, told?.fix ?? "Try again.", told?.where);
}

async function waitToRetry(response, attempt, signal) {
  const header = response.headers.get("Retry-After") ?? "";
  const asked = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  const seconds = Math.min((asked > 0 ? asked : 0.5) * 2 ** attempt, LONGEST_WAIT_SECONDS);
  byId("progress").textContent = `The service is busy. Trying again in ${count(Math.ceil(seconds), "second")}.`;
  await new Promise((resolve) => {
    setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", resolve);
  });
  byId("progress").textContent = "";
  signal?.throwIfAborted();
}

const pathOf = (user) => `v1/users/${encodeURIComponent(user)}`;

// ---- Work under way, and what goes wrong in it

/** Runs work, shows what fails, and answers whether it succeeded. */
async function during(kind, work) {
  state.work[kind] += 1;
  showBusy();
  try {
    await work();
    return true;
  } catch (error) {
    if (error.name !== "AbortError") report(error);
    return false;
  } finally {
    state.work[kind] -= 1;
    showBusy();
  }
}

// Not the `disabled` property: it would take the focus from a button that somebody is using.
const disable = (ids, disabled) => ids.forEach((id) => byId(id).setAttribute("aria-disabled", String(disabled)));

function showBusy() {
  const { sending, loading, scoring } = state.work;
  disable(["visit", "new-user"], sending > 0);
  disable(["choose-a", "choose-b", "forget"], sending + loading > 0);
  disable(["rank"], scoring > 0);
  for (const id of ["everyone", "you"]) byId(id).setAttribute("aria-busy", String(scoring > 0));
}

const isBusy = () => state.work.sending + state.work.loading > 0;

function report(error) {
  if (error.status === 401) askForKey();
  if (error instanceof Failure) return showTrouble(error.message, error.fix);
  console.error(error);
  return showTrouble("The page has a fault.", String(error));
}

function showTrouble(message, fix) {
  const known = [...byId("alert").querySelectorAll(".what")].some((what) => what.textContent === message);
  byId("alert-box").hidden = false;
  byId("alert-retry").hidden = !state.key;
  if (!known) byId("alert").append(make("p", { className: "what", text: message }), make("p", { className: "fix", text: fix }));
}

function clearTroubles() {
  byId("alert-box").hidden = true;
  for (const id of ["alert", "progress"]) byId(id).replaceChildren();
}

// ---- The key

function takeKeyFromAddress() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key) history.replaceState(null, "", location.pathname + location.search);
  return key;
}

function useKey(key) {
  clearTroubles();
  // What is not plain ASCII cannot even be sent in a header.
  if (!/^[\x21-\x7e]+$/.test(key)) {
    askForKey();
    return showTrouble("This is no key.", "A key is one word of plain letters and digits. Copy it again.");
  }
  state.key = key;
  storage?.setItem("penchant-key", key);
  return open();
}

function askForKey() {
  state.visit.abort();
  state.ranking.abort();
  Object.assign(state, { key: null, bundle: null });
  storage?.removeItem("penchant-key");
  showKeySection(true);
  byId("key").value = "";
  byId("key").focus();
}

function showKeySection(asking) {
  byId("key-section").hidden = !asking;
  for (const id of ["workbench", "other-key", "bundle"]) byId(id).hidden = asking;
}

// ---- Opening the bundle

async function open() {
  clearTroubles();
  await during("loading", async () => {
    state.bundle = await call("GET", "v1/bundle");
    showBundle();
    visit(state.user ?? storage?.getItem("penchant-user") ?? newName());
  });
}

function showBundle() {
  const { bundle, backbone, users, map, examples } = state.bundle;
  const named = map.filter((point) => point.user !== undefined);
  showKeySection(false);
  byId("bundle").textContent = `Bundle ${bundle}, on ${backbone}, with ${count(users, "user")}.`;
  byId("known-users").replaceChildren(...named.map((point) => make("option", { value: point.user })));
  byId("map").classList.toggle("open", named.length > 0);
  const shown = map.length < users ? `${map.length.toLocaleString("en-GB")} of ${count(users, "user")}` : count(users, "user");
  byId("map-caption").textContent = `${shown}. Those who prefer alike stand near each other.${named.length ? " Click a dot to be that user." : ""}`;
  drawDots(map);
  fillExamples(examples);
}

// ---- Who

const newName = () => `guest-${randomHex(2)}`;

function problemWithUser(user) {
  if (!user.trim()) return "The user id is blank.";
  if (user === "." || user === "..") return "A browser cannot ask for this user id.";
  return /\p{Surrogate}|\0/u.test(user) ? "The user id holds a character that is no text." : "";
}

async function visit(user) {
  if (state.work.sending) return;
  clearTroubles();
  const problem = problemWithUser(user);
  if (problem) return showTrouble(problem, "Give another id.");
  state.visit.abort();
  state.visit = new AbortController();
  Object.assign(state, { user, record: null, question: null, trail: [] });
  storage?.setItem("penchant-user", user);
  byId("user").value = user;
  return refresh();
}

function submitUser(event) {
  event.preventDefault();
  const typed = byId("user").value;
  const known = state.bundle.map.some((point) => point.user === typed);
  visit(known ? typed : typed.trim());
}

async function refresh() {
  clearTroubles();
  const { signal } = state.visit;
  await Promise.all([
    during("loading", () => loadRecord(signal)),
    during("loading", () => loadQuestion(signal)),
    state.texts && score(state.texts),
  ]);
  if (signal.aborted) return;
  showRecord();
  showQuestion();
  showMap();
}

async function loadRecord(signal) {
  state.record = await call("GET", pathOf(state.user), { signal });
  const { position } = state.record;
  if (position && String(position) !== String(state.trail.at(-1))) state.trail.push(position);
}

const FACTS = {
  seen: "The bundle was trained with this user.",
  onboarded: "Known from the answers given here. Nothing was trained.",
  unknown: "Nothing is known yet.",
};

function showRecord() {
  const { record, user } = state;
  byId("status-user").replaceChildren("You are ", make("bdi", { text: user }));
  byId("status").dataset.personalisation = record?.personalisation ?? "";
  byId("status").dataset.answers = record?.comparisons ?? "";
  byId("you-name").textContent = shorten(user, 32);
  const facts = record && [FACTS[record.personalisation], `${count(record.comparisons, "answer")} stored.`, `Bundle ${record.bundle}.`];
  byId("status-facts").textContent = facts?.join(" ") ?? "";
}

async function forget() {
  byId("forget-dialog").close();
  clearTroubles();
  if (!(await during("sending", () => call("DELETE", pathOf(state.user))))) return;
  state.trail = [];
  await refresh();
  byId("progress").textContent = `${shorten(state.user, 32)} is forgotten.`;
}

function askToForget() {
  if (isBusy()) return;
  byId("forget-text").textContent = `All answers of ${shorten(state.user, 60)} will be deleted. This cannot be undone.`;
  byId("forget-dialog").showModal();
}

// ---- The map

let plane = { x: (value) => value, y: (value) => value };

function drawDots(points) {
  const dots = points.map(() => document.createElementNS(SVG, "circle"));
  for (const dot of dots) dot.setAttribute("r", "3.5");
  byId("map-dots").replaceChildren(...dots);
}

/** From the plane of the embeddings to pixels; both axes have one scale, or distances would mislead. */
function fit(places, width, height) {
  const [xs, ys] = [places.map(([x]) => x), places.map(([, y]) => y)];
  const middle = (values) => (Math.min(...values) + Math.max(...values)) / 2;
  const spread = (values) => Math.max(...values) - Math.min(...values) || 1;
  const scale = Math.min((width - 2 * MARGIN) / spread(xs), (height - 2 * MARGIN) / spread(ys));
  const [left, top] = [middle(xs), middle(ys)];
  return { x: (value) => width / 2 + (value - left) * scale, y: (value) => height / 2 - (value - top) * scale };
}

function showMap() {
  const { clientWidth: width, clientHeight: height } = byId("map");
  if (!state.bundle || !width) return;
  const { map } = state.bundle;
  const places = [...map.map(({ x, y }) => [x, y]), ...state.trail];
  byId("map").setAttribute("viewBox", `0 0 ${width} ${height}`);
  if (places.length) plane = fit(places, width, height);
  [...byId("map-dots").children].forEach((dot, number) => {
    dot.setAttribute("cx", plane.x(map[number].x).toFixed(1));
    dot.setAttribute("cy", plane.y(map[number].y).toFixed(1));
  });
  showMarker(width);
}

function showMarker(width) {
  const at = state.trail.at(-1);
  // SVG elements have no `hidden` property.
  byId("map-you").toggleAttribute("hidden", !at);
  byId("map-trail").setAttribute("points", state.trail.map(([x, y]) => `${plane.x(x)},${plane.y(y)}`).join(" "));
  if (at) placeMark(byId("map-you"), at, shorten(state.user, 22), width);
  byId("map-note").textContent = noteOnPlace(at);
}

function placeMark(mark, [x, y], label, width) {
  const onTheRight = plane.x(x) > width / 2;
  const text = mark.querySelector("text");
  mark.style.transform = `translate(${plane.x(x)}px, ${plane.y(y)}px)`;
  text.textContent = label;
  text.setAttribute("x", onTheRight ? -14 : 14);
  text.setAttribute("text-anchor", onTheRight ? "end" : "start");
}

function noteOnPlace(at) {
  if (!state.record) return "";
  if (!at) return "You have no place yet. Answer a question to get one.";
  const others = state.bundle.map.filter((point) => point.user !== undefined && point.user !== state.user);
  const away = (point) => (point.x - at[0]) ** 2 + (point.y - at[1]) ** 2;
  const nearest = others.reduce((best, point) => (best && away(best) <= away(point) ? best : point), null);
  return nearest ? `Nearest to you on this map: ${shorten(nearest.user, 40)}.` : "";
}

/** The named dot under the pointer, or near it: a dot is a small thing to hit. */
function dotAt(event) {
  const { left, top } = byId("map").getBoundingClientRect();
  const [x, y] = [event.clientX - left, event.clientY - top];
  let [found, nearest] = [null, 16];
  for (const point of state.bundle.map) {
    const distance = Math.hypot(plane.x(point.x) - x, plane.y(point.y) - y);
    if (point.user !== undefined && distance < nearest) [found, nearest] = [point, distance];
  }
  return found;
}

function showHint(event) {
  const point = event.type === "pointerleave" ? null : dotAt(event);
  byId("map-hint").toggleAttribute("hidden", !point);
  if (point) placeMark(byId("map-hint"), [point.x, point.y], shorten(point.user, 22), byId("map").clientWidth);
}

// ---- Choosing

async function loadQuestion(signal) {
  try {
    const question = await call("GET", `${pathOf(state.user)}/next-comparison`, { signal });
    // One key for each possible answer: sent again after a lost reply, a choice is still stored once.
    state.question = { ...question, idempotencyKeys: [randomHex(16), randomHex(16)] };
  } catch (error) {
    if (signal.aborted) throw error;
    // A 404 for another reason (the bundle has no questions) is about no user.
    state.question = error.status === 404 && error.where === "path.user" ? { done: true } : null;
    if (!state.question) throw error;
  }
}

function showQuestion() {
  const { question } = state;
  const hadFocus = byId("question").contains(document.activeElement);
  const asked = Boolean(question && !question.done);
  byId("question").hidden = !asked;
  if (asked) showPair(question);
  const notice = choiceNotice();
  byId("choose-notice").hidden = !notice;
  byId("choose-notice").textContent = notice;
  // The button that had the focus is gone.
  if (hadFocus && !asked) byId("choose-notice").focus();
}

function choiceNotice() {
  if (!state.question) return "There is no question to show.";
  if (state.question.done) return "You have answered all questions.";
  const seen = state.record?.personalisation === "seen";
  return seen ? "The bundle already knows this user. New answers are kept for the next fit; they change nothing today." : "";
}

function showPair({ prompt, responses, bits }) {
  byId("question-prompt").textContent = prompt;
  byId("choose-a").querySelector(".text").textContent = responses[0];
  byId("choose-b").querySelector(".text").textContent = responses[1];
  byId("answers").textContent = state.record ? `${count(state.record.comparisons, "answer")} so far.` : "";
  byId("bits").textContent = `This answer tells ${bits < 0.01 ? "less than 0.01 bits" : `about ${count(Number(bits.toFixed(2)), "bit")}`}.`;
}

async function choose(number) {
  const { question, user } = state;
  if (isBusy() || !question || question.done) return;
  clearTroubles();
  const card = byId(number === 0 ? "choose-a" : "choose-b");
  const [chosen, rejected] = number === 0 ? question.responses : [...question.responses].reverse();
  card.classList.add("chosen");
  const done = await during("sending", () =>
    call("POST", `${pathOf(user)}/comparisons`, {
      body: { comparisons: [{ prompt: question.prompt, chosen, rejected }] },
      idempotencyKey: question.idempotencyKeys[number],
    }),
  );
  card.classList.remove("chosen");
  if (done) await refresh();
}

function chooseByKey(event) {
  const number = CHOICE_KEYS[event.key.toLowerCase()];
  const typing = event.target.closest?.("input:not([type=checkbox]), textarea, select, dialog");
  const other = event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.isComposing;
  if (number === undefined || typing || other || !byId("shortcuts").checked || byId("question").hidden) return;
  event.preventDefault();
  choose(number);
}

// ---- Ranking

function fillExamples(examples) {
  const options = examples.map(({ prompt }, number) => make("option", { value: String(number), text: shorten(prompt, PROMPT_SHOWN) }));
  byId("example").replaceChildren(...options, make("option", { value: OWN, text: "Write your own" }));
  selectTexts();
}

function selectTexts() {
  const own = byId("example").value === OWN;
  byId("own").hidden = !own;
  setTexts(own ? ownTexts() : state.bundle.examples[Number(byId("example").value)]);
}

function ownTexts() {
  const prompt = byId("own-prompt").value.trim();
  const responses = byId("own-candidates").value.split("\n").map((line) => line.trim()).filter(Boolean);
  return prompt && responses.length ? { prompt, responses } : null;
}

function setTexts(texts) {
  state.ranking.abort();
  state.texts = texts;
  byId("ranking").hidden = true;
}

function changeExample() {
  selectTexts();
  clearTroubles();
  if (state.texts) score(state.texts);
}

function submitOwn(event) {
  event.preventDefault();
  clearTroubles();
  const texts = ownTexts();
  if (!texts) return showTrouble("There is nothing to rank.", "Give a prompt and one candidate or more.");
  setTexts(texts);
  return score(texts);
}

async function score(texts) {
  state.ranking.abort();
  state.ranking = new AbortController();
  const { signal } = state.ranking;
  const body = { user: state.user, prompt: texts.prompt, responses: texts.responses };
  const done = await during("scoring", async () => showRanking(texts, await call("POST", "v1/score", { body, signal })));
  // Another user's ranking must not stay.
  if (!done && !signal.aborted) byId("ranking").hidden = true;
}

function order(scores, name) {
  return [...scores].sort((one, other) => other[name] - one[name] || one.index - other.index).map(({ index }) => index);
}

function showRanking(texts, { scores, personalisation }) {
  const [everyone, own] = [order(scores, "uniform"), order(scores, "score")];
  byId("ranking").hidden = false;
  byId("ranking-prompt").textContent = texts.prompt;
  // The list of examples, or the form, shows a short one already.
  byId("ranking-prompt").hidden = byId("example").value === OWN || shorten(texts.prompt, PROMPT_SHOWN) === texts.prompt;
  byId("ranking-notice").textContent = personalisation === "unknown" ? "Nothing is known of you yet: both lists are the same." : "";
  fillList(byId("everyone"), texts, everyone, scores, "uniform");
  fillList(byId("you"), texts, own, scores, "score");
  own.forEach((index, rank) => showMove(itemOf(byId("you"), index), everyone.indexOf(index) - rank));
}

const itemOf = (list, index) => list.querySelector(`li[data-index="${index}"]`);

function fillList(list, texts, ranked, scores, name) {
  const before = new Map();
  if (list.texts === texts) for (const item of list.children) before.set(item, item.getBoundingClientRect().top);
  else list.replaceChildren(...texts.responses.map(makeItem));
  list.texts = texts;
  const values = scores.map((item) => item[name]);
  const [lowest, highest] = [Math.min(...values), Math.max(...values)];
  ranked.forEach((index, rank) => {
    const item = itemOf(list, index);
    item.querySelector(".rank").textContent = rank + 1;
    item.querySelector(".score").textContent = values[index].toFixed(2).replace("-", "−");
    const share = highest > lowest ? (values[index] - lowest) / (highest - lowest) : 1;
    item.querySelector("i").style.setProperty("--share", 0.04 + 0.96 * share);
    list.append(item);
  });
  slide(before);
}

function makeItem(text, index) {
  const item = make("li");
  item.dataset.index = index;
  const bar = make("span", { className: "bar", ariaHidden: "true" });
  const measure = make("span", { className: "measure" });
  bar.append(make("i"));
  measure.append(bar, make("span", { className: "score", title: "Score" }));
  item.append(make("span", { className: "rank" }), make("span", { className: "text", dir: "auto", text }), make("span", { className: "move" }), measure);
  return item;
}

function showMove(item, places) {
  const move = item.querySelector(".move");
  const way = places > 0 ? "up" : "down";
  move.className = places ? `move ${way}` : "move";
  move.textContent = places ? `${places > 0 ? "▲" : "▼"} ${way} ${Math.abs(places)}` : "same";
}

/** FLIP: each item starts from where it was and slides to where it is. */
function slide(before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const [item, top] of before) {
    const distance = top - item.getBoundingClientRect().top;
    if (distance) item.animate([{ transform: `translateY(${distance}px)` }, { transform: "none" }], { duration: 450, easing: "ease-out" });
  }
}

// ---- Start

function listen() {
  const on = (id, type, handler) => byId(id).addEventListener(type, handler);
  on("key-form", "submit", (event) => {
    event.preventDefault();
    useKey(byId("key").value.trim());
  });
  on("alert-retry", "click", () => (state.bundle ? refresh() : open()));
  on("alert-dismiss", "click", clearTroubles);
  on("other-key", "click", () => (clearTroubles(), askForKey()));
  on("who-form", "submit", submitUser);
  on("new-user", "click", () => visit(newName()));
  on("user", "focus", () => byId("user").select());
  on("forget", "click", askToForget);
  on("forget-no", "click", () => byId("forget-dialog").close());
  on("forget-yes", "click", forget);
  on("map", "click", (event) => {
    const point = dotAt(event);
    if (point) visit(point.user);
  });
  on("map", "pointermove", showHint);
  on("map", "pointerleave", showHint);
  // The second click of a double click would answer a question that nobody has read.
  on("choose-a", "click", (event) => event.detail < 2 && choose(0));
  on("choose-b", "click", (event) => event.detail < 2 && choose(1));
  on("example", "change", changeExample);
  on("own", "submit", submitOwn);
  on("whole", "change", () => ["everyone", "you"].forEach((id) => byId(id).classList.toggle("whole", byId("whole").checked)));
  document.addEventListener("keydown", chooseByKey);
  new ResizeObserver(showMap).observe(byId("map"));
}

function start() {
  const key = takeKeyFromAddress() || storage?.getItem("penchant-key");
  if (key) useKey(key);
  else askForKey();
}

listen();
// A link with another key, pasted into the address bar of this page, does not load it again.
addEventListener("hashchange", start);
start();
