// The playground: a form made of what /v1/models says, and what the server answers to it.
//
// Whatever comes from the server or from the user is put into the page as text (`textContent`),
// never as HTML; the page's Content-Security-Policy makes the browser refuse anything else.

const $ = (id) => document.getElementById(id);

const MODELS = "v1/models";
const ANSWERS = "v1/completions";
const LABELS = "v1/classify";

const OPTIONS = ["max_tokens", "temperature", "seed"];
const SECONDS_BETWEEN_TRIES = 2; // while the server is loading

const MOST_LABELS_NAMED = 6; // beside the name of a task
const FEWEST_FOR_A_RATE = 5; // tokens; the rate of fewer is mostly noise

const WITH = "With the prompt";
const WITHOUT = "Base alone";

// In memory only: gone when the page is closed.
let key = "";
const tasks = new Map();
const typed = new Map(); // texts by the names of fields, kept when another task is chosen
let running = null; // the AbortController of what is being asked

/** An element with a text, and with properties. */
function make(tag, text = "", properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== "") element.textContent = text;
  return element;
}

// Calling the server.

/** An error of the API: its message, and the key of the body that is wrong. */
class ApiError extends Error {
  constructor({ message, param, code }) {
    super(message);
    Object.assign(this, { param, code });
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const text = await response.text();
  throw errorOf(text) ?? new Error(`The server answered ${response.status}: ${text.slice(0, 300)}`);
}

function errorOf(text) {
  try {
    return new ApiError(JSON.parse(text).error);
  } catch {
    return null;
  }
}

function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return call(path, { method: "POST", body, headers, signal });
}

/** The values of a stream of server-sent events, up to its `[DONE]`. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The connection ended before the answer did.");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const piece = JSON.parse(data);
      if (piece.error) throw new ApiError(piece.error);
      yield piece;
    }
  }
}

// Bodies. Numbers are written as they were typed: a large seed has more digits than JavaScript's
// numbers, and what is no number is for the server to refuse.

const JSON_NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?$/;

function parts() {
  const areas = [...$("fields").querySelectorAll("textarea")];
  const fields = Object.fromEntries(areas.map((area) => [area.name, area.value]));
  return { model: JSON.stringify($("task").value), fields: JSON.stringify(fields) };
}

function options() {
  const given = {};
  for (const name of OPTIONS) {
    const text = $(name).value.trim();
    if (text) given[name] = JSON_NUMBER.test(text) ? text : JSON.stringify(text);
  }
  return given;
}

const json = (entries) =>
  `{${Object.entries(entries)
    .map(([name, value]) => `"${name}": ${value}`)
    .join(", ")}}`;

const promptOff = (usePrompt) => (usePrompt ? {} : { use_prompt: "false" });

// Errors, where they belong.

function showError(error) {
  const name = (error.param ?? "").split(".")[0];
  const place = $(`error-${name}`);
  if (!place) return false;
  show(place, error.message);
  const input = $(name);
  if (input) {
    input.setAttribute("aria-invalid", "true");
    if ($("options").contains(input)) $("options").open = true;
  }
  return true;
}

function show(place, message) {
  place.textContent = message;
  place.hidden = !message;
}

function clearErrors() {
  for (const place of document.querySelectorAll("#ask .error, #labels-error")) show(place, "");
  for (const input of document.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
  }
}

// Tasks.

async function loadTasks() {
  show($("tasks-error"), "");
  let listed;
  try {
    listed = (await (await call(MODELS)).json()).data;
  } catch (error) {
    if (error.code === "starting") {
      show($("tasks-status"), error.message);
      setTimeout(loadTasks, 1000 * SECONDS_BETWEEN_TRIES);
      return;
    }
    show($("tasks-status"), "");
    const wantsKey = error.code === "invalid_api_key";
    if (wantsKey) {
      $("key-form").hidden = false;
      $("key").focus();
    }
    if (!wantsKey || key) show($("tasks-error"), wantsKey ? "This is not the key." : error.message);
    return;
  }
  show($("tasks-status"), "");
  $("key-form").hidden = true;
  fillTasks(listed);
}

function fillTasks(listed) {
  tasks.clear();
  $("task").replaceChildren();
  for (const task of listed) {
    tasks.set(task.id, task);
    $("task").append(make("option", task.id, { value: task.id }));
  }
  if (!listed.length) {
    show($("tasks-error"), "The server has no task. Add one with POST /admin/tasks.");
    return;
  }
  $("ask").hidden = false;
  fillFields();
}

const counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function fillFields() {
  const task = tasks.get($("task").value);
  const about = [counted(task.virtual_tokens, "virtual token")];
  const { length } = task.labels;
  if (length > MOST_LABELS_NAMED) about.push(`answers with one of ${length} labels`);
  else if (length) about.push(`answers with one of: ${task.labels.join(", ")}`);
  $("about").textContent = about.join(" · ");
  $("fields").replaceChildren(...task.fields.map((name, index) => fieldOf(task, name, index)));
}

function fieldOf(task, name, index) {
  const long = name === task.truncate_field;
  const area = make("textarea", "", { id: `field-${index}`, name, rows: long ? 7 : 2 });
  area.value = typed.get(name) ?? "";
  area.addEventListener("input", () => typed.set(name, area.value));
  const field = make("div", "", { className: "field" });
  field.append(make("label", name, { htmlFor: area.id }), area);
  if (long) {
    const hint = make("p", "Cut at its end where the prompt would be too long", {
      className: "hint",
      id: `${area.id}-hint`,
    });
    area.setAttribute("aria-describedby", hint.id);
    field.append(hint);
  }
  return field;
}

// Asking.

async function ask() {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  clearAnswers();
  const task = tasks.get($("task").value);
  const form = parts();
  const numbers = options();
  const uses = $("compare").checked ? [true, false] : [true];
  const columns = uses.map((usePrompt) => columnOf(usePrompt, uses.length > 1));
  $("nothing").hidden = true;
  $("columns").replaceChildren(...columns.map((column) => column.element));
  $("columns").classList.toggle("two", uses.length > 1);
  showCommands(task, form, numbers, uses);
  $("stop").disabled = false;
  bringIntoView($("answers"));

  // One request at a time, so that the times of each are its own.
  for (const [index, usePrompt] of uses.entries()) {
    if (mine.signal.aborted) break;
    await answer({ ...form, ...numbers, ...promptOff(usePrompt) }, columns[index], mine.signal);
  }
  if (task.labels.length && !mine.signal.aborted) await classify(form, uses, mine.signal);

  if (running !== mine) return;
  running = null;
  if (document.activeElement === $("stop")) $("go").focus();
  $("stop").disabled = true;
}

function clearAnswers() {
  clearErrors();
  $("columns").replaceChildren();
  $("labels").hidden = true;
  $("as-curl").hidden = true;
  $("nothing").hidden = false;
}

/** On a phone the answer stands under the form. */
function bringIntoView(element) {
  if (element.getBoundingClientRect().top > 0.7 * innerHeight) element.scrollIntoView();
}

function columnOf(usePrompt, named) {
  const element = make("article", "", { className: "answer" });
  if (named) element.append(make("h3", usePrompt ? WITH : WITHOUT));
  const text = make("div", "", { className: "text" });
  text.setAttribute("role", "log");
  text.setAttribute("aria-label", usePrompt ? "Answer" : "Answer of the base alone");
  text.setAttribute("aria-live", "polite");
  const error = make("p", "", { className: "error", hidden: true });
  error.setAttribute("role", "alert");
  const figures = make("p", "", { className: "figures" });
  figures.setAttribute("role", "status");
  element.append(text, error, figures);
  return { element, text, error, figures };
}

async function answer(body, place, signal) {
  // A screen reader waits for the whole answer, instead of reading every piece of a word.
  place.text.setAttribute("aria-busy", "true");
  const began = performance.now();
  const seen = { first: null, last: null, reason: null, usage: null };
  const streaming = { stream: "true", stream_options: '{"include_usage": true}' };
  try {
    const response = await post(ANSWERS, json({ ...body, ...streaming }), signal);
    for await (const piece of events(response)) {
      if (signal.aborted) break;
      seen.usage = piece.usage ?? seen.usage;
      for (const choice of piece.choices) {
        seen.first ??= performance.now();
        place.text.append(choice.text);
        seen.reason = choice.finish_reason ?? seen.reason;
        if (choice.finish_reason) seen.last = performance.now();
      }
      if (seen.reason === null) place.figures.textContent = firstToken(seen, began);
    }
    if (!place.text.textContent) place.text.append(make("em", "An empty answer."));
  } catch (error) {
    if (!signal.aborted) {
      place.text.hidden = !place.text.textContent;
      if (showError(error)) show(place.error, "No answer: the form says what is wrong.");
      else show(place.error, error.message);
    }
  }
  place.figures.textContent = signal.aborted
    ? [firstToken(seen, began), "stopped"].filter(Boolean).join(" · ")
    : figuresOf(seen, began);
  place.text.setAttribute("aria-busy", "false");
}

function firstToken({ first }, began) {
  return first === null ? "" : `first token ${timeOf(first - began)}`;
}

const timeOf = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);

const ENDS = {
  length: "ended at the most tokens",
  timeout: "ended at the time limit",
};

function figuresOf(seen, began) {
  if (seen.usage === null) return firstToken(seen, began);
  const { completion_tokens: written, prompt_tokens: read, prompt_tokens_details: details } =
    seen.usage;
  const seconds = (seen.last - seen.first) / 1000;
  const said = [firstToken(seen, began)];
  // The rate is that of the tokens after the first one.
  if (written >= FEWEST_FOR_A_RATE && seconds > 0) said.push(`${((written - 1) / seconds).toFixed(1)} tokens/s`);
  said.push(counted(written, "token"));
  said.push(`prompt of ${read}${details.cached_tokens ? `, ${details.cached_tokens} cached` : ""}`);
  if (details.cut_tokens) said.push(`${counted(details.cut_tokens, "token")} of the prompt cut`);
  if (ENDS[seen.reason]) said.push(ENDS[seen.reason]);
  return said.join(" · ");
}

// Labels.

async function classify(form, uses, signal) {
  try {
    const given = [];
    for (const usePrompt of uses) {
      const body = json({ ...form, ...promptOff(usePrompt) });
      given.push((await (await post(LABELS, body, signal)).json()).labels);
    }
    if (!signal.aborted) showLabels(given);
  } catch (error) {
    if (signal.aborted || showError(error)) return;
    $("labels").querySelector("table").hidden = true;
    $("labels").hidden = false;
    show($("labels-error"), error.message);
  }
}

/** A row for each label, the likeliest with the prompt first. */
function showLabels(given) {
  const order = given[0].map((_, index) => index);
  order.sort((a, b) => given[0][b].probability - given[0][a].probability);
  const table = $("labels").querySelector("table");
  const titles = given.length > 1 ? ["Label", WITH, WITHOUT] : ["Label", "Probability"];
  const head = make("tr");
  head.append(...titles.map((title) => make("th", title, { scope: "col" })));
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(
    ...order.map((index) => {
      const row = make("tr");
      row.append(make("th", given[0][index].label, { scope: "row" }));
      row.append(...given.map((labels) => barOf(labels[index].probability)));
      return row;
    }),
  );
  table.hidden = false;
  $("labels").hidden = false;
}

function barOf(probability) {
  const cell = make("td");
  const track = make("span", "", { className: "track" });
  const bar = make("span", "", { className: "bar" });
  bar.style.inlineSize = `${100 * probability}%`;
  track.setAttribute("aria-hidden", "true");
  track.append(bar);
  cell.append(track, make("span", percent(probability), { className: "number" }));
  return cell;
}

function percent(probability) {
  const value = 100 * probability;
  return value > 0 && value < 0.01 ? "< 0.01 %" : `${value.toFixed(2)} %`;
}

// The same for a shell.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function showCommands(task, form, numbers, uses) {
  const commands = uses.flatMap((usePrompt) => {
    const off = promptOff(usePrompt);
    const which = uses.length === 1 ? "" : usePrompt ? ", with the prompt" : ", base alone";
    const made = [[`Answer${which}`, ANSWERS, { ...form, ...numbers, ...off }]];
    if (task.labels.length) made.push([`Labels${which}`, LABELS, { ...form, ...off }]);
    return made;
  });
  $("commands").replaceChildren(...commands.map((each) => commandOf(...each)));
  $("curl-key").hidden = !key;
  $("as-curl").hidden = false;
}

function commandOf(title, path, body) {
  const lines = [`curl ${quoted(new URL(path, document.baseURI).href)}`];
  if (key) lines.push('-H "Authorization: Bearer $PLC_API_KEY"'); // never the key itself
  lines.push("-H 'Content-Type: application/json'", `--data-raw ${quoted(json(body))}`);
  const text = lines.join(" \\\n  ");
  const code = make("pre", text, { tabIndex: 0 });
  code.setAttribute("aria-label", `${title}, as a command`);
  code.setAttribute("role", "region");
  const copy = make("button", "Copy", { type: "button" });
  copy.setAttribute("aria-label", `Copy: ${title}`);
  copy.addEventListener("click", () => copyText(text, code, copy));
  const head = make("div", "", { className: "row between" });
  head.append(make("h3", title), copy);
  const element = make("div", "", { className: "command" });
  element.append(head, code);
  return element;
}

async function copyText(text, code, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Browsers offer the clipboard to https and localhost only.
    getSelection().selectAllChildren(code);
    button.textContent = "Selected: press Ctrl + C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// What the user does.

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  loadTasks();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("task").addEventListener("change", () => {
  running?.abort();
  clearAnswers();
  fillFields();
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("ask").hidden) {
    event.preventDefault();
    ask();
  }
});

loadTasks();
