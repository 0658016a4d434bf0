// The page: a form, the cards of its last draw, and the frontier.

import { Card, html } from "./card.js";
import { Refusal, bodyOf, draw, get, useKey } from "./draw.js";
import { Easel, pictureAt } from "./easel.js";
import { text } from "./plan.js";
import { Plot } from "./plot.js";
import { deadline as inWords, milliseconds, roundUp, share } from "./words.js";

const NAMED = ["fast", "balanced", "best"];
const LARGEST_SEED = 2n ** 64n - 1n;
const ANY = "";
// Of a deadline, what encoding an image and handing it over takes.
const WAY_MS = 3;
// What the server takes where nothing is said, without a mask and with one.
const USUAL_STRENGTH = [0.8, 1];

const $ = (id) => document.getElementById(id);
// The names of the models, the usual one first, and what is known of the one that is chosen.
let models = [];
let model = null;
let plot = null;
let easel = null;
let running = null;
let cards = [];
let remembering = null;
let isOwnStrength = false;

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
  start();
});
start();

async function start() {
  try {
    models = (await get("/v1/models")).data.map(({ id }) => id);
    model = await about(models.find((name) => name === asked().get("model")) ?? models[0]);
  } catch (error) {
    return excuse(error);
  }
  complain($("trouble"), null);
  $("key-form").hidden = true;
  offerModels();
  offerStart();
  offerModel();
  watchPlot();
  reseed();
  recall();
  refresh();
  $("main").hidden = false;
  $("reseed").addEventListener("click", () => { reseed(); refresh(); });
  $("form").addEventListener("input", refresh);
  $("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  $("deadline").addEventListener("input", () => { $("use-deadline").checked = true; refresh(); });
}

/** Says why there is nothing to see yet, and what helps: waiting, or a key. */
function excuse(error) {
  $("model").textContent = "";
  complain($("trouble"), error.message);
  if (error.code === "starting") setTimeout(start, 1000);
  $("key-form").hidden = error.code !== "unauthorized";
}

/** What the server says of a model. */
function about(name) {
  return get(`/subnets?model=${encodeURIComponent(name)}`);
}

/** Offers a choice where there is one. */
function offerModels() {
  $("which-field").hidden = models.length < 2;
  $("which").replaceChildren(...models.map((name) => html("option", { value: name }, name)));
  $("which").value = model.model;
  $("which").addEventListener("change", choose);
}

/** Takes up the model that is chosen. */
async function choose() {
  const name = $("which").value;
  try {
    const chosen = await about(name);
    // Unless another has been chosen meanwhile.
    if (name !== $("which").value) return;
    model = chosen;
  } catch (error) {
    $("which").value = model.model;
    return complain($("trouble"), error.message);
  }
  complain($("trouble"), null);
  offerModel();
  fit();
  refresh();
}

/** Offers what the model draws. */
function offerModel() {
  describe();
  offerClasses();
  offerPrompt();
  offerBudgets();
  offerFrontier();
}

function describe() {
  const { image, subnets, model: name } = model;
  const full = subnets[subnets.length - 1];
  const size = image.channels === 1 ? `${image.width} × ${image.height} grey pixels` : `${image.width} × ${image.height} pixels`;
  const millions = (full.parameters / 1e6).toPrecision(3);
  $("model").replaceChildren(html("strong", {}, name), `: ${size}, ${subnets.length} widths in one network of ${millions} M parameters`);
}

function offerClasses() {
  $("class-field").hidden = model.classes.length === 0;
  $("guidance-field").hidden = model.classes.length === 0 && !model.prompts;
  const chip = (value, text, index) => {
    const input = html("input", { type: "radio", name: "class", value, id: `class-${index}` });
    return html("span", {}, input, html("label", { for: `class-${index}` }, text));
  };
  $("classes").replaceChildren(...model.classes.map((name, index) => chip(name, name, index)), chip(ANY, "any", "any"));
  $("classes").querySelector("input").checked = true;
}

function offerPrompt() {
  $("prompt-field").hidden = !model.prompts;
  $("guidance").value = model.guidance;
  $("size-field").hidden = model.sizes.length < 2;
  $("size").replaceChildren(...model.sizes.map((size) => html("option", { value: size }, size.replace("x", " × "))));
}

function offerStart() {
  easel = new Easel($("easel"), $("brush"), () => { proposeStrength(); refresh(); });
  $("image").addEventListener("change", startFromFile);
  $("size").addEventListener("change", () => { fit(); refresh(); });
  $("strength").addEventListener("input", () => { isOwnStrength = true; });
  $("clear-mask").addEventListener("click", () => easel.clear());
  $("remove").addEventListener("click", () => { startFrom(null); $("image").focus(); });
}

/** Starts from the file that is chosen, or from noise where none is. */
async function startFromFile() {
  const [file] = $("image").files;
  if (!file) return startFrom(null);
  const url = URL.createObjectURL(file);
  try {
    const picture = await pictureAt(url);
    // Unless another has been chosen meanwhile.
    if (file === $("image").files[0]) startFrom(picture, file.name, true);
  } catch {
    if (file !== $("image").files[0]) return;
    startFrom(null);
    complain($("image-problem"), `This browser cannot read ${file.name} as an image.`);
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Starts from a result, in its size. */
async function startFromResult(url, { width, height }, name) {
  const picture = await pictureAt(url);
  if (model.sizes.length > 1) $("size").value = `${width}x${height}`;
  startFrom(picture, name);
  $("start").open = true;
  easel.film.focus();
}

/** Starts from a picture, or from noise for null. */
function startFrom(picture, name = "", isFile = false) {
  if (!isFile) $("image").value = "";
  complain($("image-problem"), null);
  $("started").hidden = !picture;
  $("start-name").textContent = name;
  isOwnStrength = false;
  easel.show(picture);
  fit();
  refresh();
}

/** Makes the picture as large as what is drawn. */
function fit() {
  if (easel.picture) easel.fit(pixels(sizeNow()));
  proposeStrength();
}

/** Keeps the slider at what is usual until it is moved. */
function proposeStrength() {
  if (!isOwnStrength) $("strength").value = USUAL_STRENGTH[Number(easel.isPainted)];
}

/** The size that is chosen, or the only one. */
function sizeNow() {
  return $("size").value || model.sizes[0];
}

/** What a request is of, in words. */
function named({ className, prompt }) {
  return prompt ?? className ?? "any class";
}

/** The pixels of a size such as 512x512. */
function pixels(size) {
  const [width, height] = size.split("x").map(Number);
  return { ...model.image, width, height };
}

/** The plan of a named budget. */
function planOf(name) {
  const budget = model.budgets[name];
  return typeof budget === "string" ? budget : budget.plan;
}

function offerBudgets() {
  const row = (name) => {
    const input = html("input", { type: "checkbox", name: "budget", value: name, id: `budget-${name}` });
    input.checked = name !== "balanced";
    return html("div", { class: "budget" }, input, html("label", { for: `budget-${name}` }, name), html("code", { class: "plan-text" }, ...text(planOf(name))));
  };
  $("budgets").replaceChildren(...NAMED.filter((name) => name in model.budgets).map(row));
}

/** Whether the server knows what plans take. */
function measured() {
  return model.frontier?.length > 0;
}

function drawPoint({ plan }) {
  run([{ title: "one plan", budget: `exact:${plan}` }]);
}

function offerFrontier() {
  $("frontier").hidden = !measured();
  $("deadline-row").hidden = !measured();
  if (!measured()) return;
  if (plot) drawPlot(plot.width);
  say(null);
}

/** Draws the plot of the frontier, so many pixels wide. */
function drawPlot(width) {
  const names = {};
  for (const name of NAMED.filter((name) => name in model.budgets)) {
    names[planOf(name)] = names[planOf(name)] ? `${names[planOf(name)]}, ${name}` : name;
  }
  plot = new Plot(width, model.frontier, model.metric, names, say, drawPoint);
  $("plot").replaceChildren(plot.element);
  show();
}

/** The plot is made for its width, so that its letters have the page's size on every screen. */
function watchPlot() {
  new ResizeObserver(([{ contentRect }]) => {
    if (measured() && contentRect.width !== 0 && contentRect.width !== plot?.width) drawPlot(contentRect.width);
  }).observe($("plot"));
}

/** The slider's deadline, ms: from the fastest plan of the frontier to the best, and a little for the way there. */
function deadline() {
  const [least, most] = [model.frontier[0].ms, model.frontier[model.frontier.length - 1].ms].map((ms) => ms * 1.25 + WAY_MS);
  return roundUp(least * (most / least) ** ($("deadline").value / 1000));
}

/** What the frontier promises for a deadline, on an idle machine. */
function promised(ms) {
  return model.frontier.filter((point) => point.ms <= ms - WAY_MS).pop() ?? model.frontier[0];
}

function say(point) {
  const best = model.frontier[model.frontier.length - 1];
  const { plan, quality, ms } = point ?? best;
  $("readout").replaceChildren(point ? "" : "best: ", html("code", { class: "plan-text" }, ...text(plan)), ` quality ${share(quality)}, ${milliseconds(ms)} alone`);
}

function reseed() {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
}

function complain(element, message) {
  element.textContent = message ?? "";
  element.hidden = !message;
}

/** The form's fields, or null with the problem said beside its field. */
function fields() {
  const seed = $("seed").value.trim();
  const goodSeed = /^[0-9]{1,20}$/.test(seed) && BigInt(seed) <= LARGEST_SEED;
  complain($("seed-problem"), goodSeed ? null : `The seed must be a whole number from 0 to ${LARGEST_SEED}.`);
  $("seed").setAttribute("aria-invalid", !goodSeed);

  const chosen = document.querySelector("input[name=class]:checked")?.value ?? ANY;
  const className = chosen === ANY ? null : chosen;
  const prompt = model.prompts ? $("prompt").value : null;
  const negative = model.prompts ? $("negative").value : "";
  const size = sizeNow();
  const goodPrompt = prompt !== "";
  complain($("prompt-problem"), goodPrompt ? null : "Say what the image is to show.");
  $("prompt").setAttribute("aria-invalid", !goodPrompt);
  const guided = className !== null || prompt !== null;
  $("guidance").disabled = !guided;
  $("guidance-hint").textContent = guided ? "1 is off" : "needs a class";
  const guidance = Number($("guidance").value.trim() || NaN);
  const goodGuidance = !guided || (guidance >= 0 && guidance <= 20);
  complain($("guidance-problem"), goodGuidance ? null : "Guidance must be 0 to 20.");
  $("guidance").setAttribute("aria-invalid", !goodGuidance);
  if (!goodSeed || !goodGuidance || !goodPrompt) return null;
  const start = easel.picture && { ...easel.files, strength: Number($("strength").value), name: $("start-name").textContent };
  // What is usual goes without saying.
  return { model: model.model === models[0] ? null : model.model, className, prompt, negative, size: size === model.sizes[0] ? null : size, seed: String(BigInt(seed)), guidance: guided && guidance !== model.guidance ? guidance : null, start };
}

/** The budgets that are checked, from the quickest. */
function budgets() {
  const named = [...document.querySelectorAll("#budgets input:checked")].map(({ value }) => ({ title: value, budget: value }));
  if (!measured() || !$("use-deadline").checked) return named;
  const own = { title: `within ${inWords(deadline())}`, budget: `${deadline()}ms` };
  const ms = (name) => model.frontier.find((point) => point.plan === planOf(name))?.ms ?? Infinity;
  const place = named.findIndex(({ budget }) => ms(budget) > promised(deadline()).ms);
  return place < 0 ? [...named, own] : named.toSpliced(place, 0, own);
}

/** Shows what the form says now. */
function refresh() {
  const request = fields();
  const chosen = budgets();
  complain($("budget-problem"), chosen.length ? null : "Check at least one budget.");
  if (measured()) {
    $("deadline-text").textContent = inWords(deadline());
    $("deadline").setAttribute("aria-valuetext", inWords(deadline()));
    $("deadline-plan").replaceChildren(...text(promised(deadline()).plan));
  }
  $("strength-text").textContent = $("strength").value;
  show();
  if (!request || !chosen.length) return;
  $("budget-hint").hidden = !request.start || request.start.strength === 1;
  $("shell").textContent = chosen.map(({ budget }) => inShell(request, budget)).join("\n");
  $("shell-files").hidden = !request.start;
  $("shell-masked").hidden = !request.start?.mask;
  for (const name of ["image", "mask"]) $(`shell-${name}`).href = request.start?.[name] ?? "";
  remember(request, chosen);
}

/** The request as a command. */
function inShell(request, budget) {
  const command = (data, more) => `curl '${location.origin}/generate?budget=${budget}' \\\n  -H 'content-type: application/json' \\\n  -d ${data} -o ${budget}.png${more}`;
  if (!request.start) return command(`'${bodyOf(request).replaceAll("'", "'\\''")}'`, "");
  const { mask, strength } = request.start;
  const body = bodyOf({ ...request, start: { image: "", mask: mask && "", strength } });
  // Files are too long for an argument. curl leaves out the ends of their lines.
  const quoted = body.replace(/[\\$`]/g, "\\$&").replace(/"(image|mask)":""/g, '"$1":"$(base64 <$1.png)"');
  return command("@-", ` <<END\n${quoted}\nEND`);
}

/** Shows on the plot what the form asks and what was served. */
function show() {
  plot?.mark($("use-deadline").checked ? deadline() : null);
  plot?.serve(cards.filter(({ result }) => result).map(({ result, total }) => ({ ...result, ms: total })));
}

/** Keeps the form in the address a moment later: browsers count how often that is done, and a prompt has many letters. */
function remember(request, chosen) {
  clearTimeout(remembering);
  remembering = setTimeout(() => keep(request, chosen), 300);
}

/** Keeps the form in the address, so that it can be shared and reloaded. */
function keep({ className, prompt, negative, seed }, chosen) {
  const state = new URLSearchParams({ seed, guidance: $("guidance").value, budgets: chosen.map(({ budget }) => budget).join(" ") });
  if (prompt === null) state.set("class", className ?? ANY);
  else state.set("prompt", prompt);
  if (negative) state.set("negative", negative);
  if (models.length > 1) state.set("model", model.model);
  if (model.sizes.length > 1) state.set("size", $("size").value);
  if (measured()) state.set("deadline", $("deadline").value);
  history.replaceState(null, "", `#${state}`);
}

/** What the address asks for. */
function asked() {
  return new URLSearchParams(location.hash.slice(1));
}

function recall() {
  const state = asked();
  for (const name of ["prompt", "negative", "size", "seed", "guidance", "deadline"]) if (state.has(name)) $(name).value = state.get(name);
  const known = [...document.querySelectorAll("input[name=class]")].find(({ value }) => value === state.get("class"));
  if (known) known.checked = true;
  if (!state.has("budgets")) return;
  const chosen = state.get("budgets").split(" ");
  for (const box of document.querySelectorAll("#budgets input")) box.checked = chosen.includes(box.value);
  $("use-deadline").checked = chosen.some((budget) => /^[0-9]+ms$/.test(budget));
}

function submit() {
  if (running) return running.abort();
  const chosen = budgets();
  if (chosen.length) run(chosen);
}

/** Draws the form's image by each of `chosen`, one after another. */
async function run(chosen) {
  const request = fields();
  if (!request) return void document.querySelector("[aria-invalid=true]")?.focus();
  keep(request, budgets());
  complain($("image-problem"), null);
  running?.abort();
  const mine = (running = new AbortController());
  for (const { result } of cards) if (result?.url.startsWith("blob:")) URL.revokeObjectURL(result.url);
  const size = pixels(request.size ?? model.sizes[0]);
  const wording = `${named(request)}, seed ${request.seed}`;
  cards = chosen.map(({ title }) => new Card(title, size, (url) => startFromResult(url, size, `${wording}, ${title}`)));
  $("results").replaceChildren(...cards.map((card) => card.element));
  $("subject").textContent = request.start ? `${wording}, from ${request.start.name}` : wording;
  $("empty").hidden = true;
  $("draw").textContent = "Stop";
  for (const [index, { title, budget }] of chosen.entries()) {
    if (mine.signal.aborted) break;
    await drawOne(cards[index], request, title, budget, mine.signal);
  }
  if (running === mine) {
    running = null;
    $("draw").textContent = "Draw";
  }
}

async function drawOne(card, request, title, budget, signal) {
  card.begin();
  try {
    const result = await draw(request, budget, card, signal);
    card.finish(result, `${request.prompt ?? request.className ?? "an image"}, seed ${request.seed}, drawn with ${result.plan}`);
    $("status").textContent = `${title}: drawn with ${result.plan} in ${milliseconds(card.total)}`;
  } catch (error) {
    if (error.name === "AbortError") return card.fail("Stopped.");
    if (!(error instanceof Refusal)) console.error(error);
    card.fail(error instanceof Refusal ? error.message : "The page could not show the answer.");
    if (["image", "mask", "strength"].includes(error.field)) {
      complain($("image-problem"), error.message);
      $("start").open = true;
    }
    $("status").textContent = `${title}: ${error.message}`;
  }
  const done = cards.filter((other) => other.result);
  const longest = Math.max(...done.map(({ total }) => total));
  done.forEach((other) => other.scale(longest));
  show();
}
