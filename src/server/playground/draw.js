// One request for one image: by the stream of events where the server offers it, else by a plain answer.

/** What the server, or the way to it, refused. `message` is for people. */
export class Refusal extends Error {}

/** The request's body. The seed stays text: JavaScript's numbers would round large ones. */
export function bodyOf({ model, className, prompt, negative, size, seed, guidance, start }) {
  const fields = [`"seed":${seed}`];
  if (negative) fields.unshift(`"negative_prompt":${JSON.stringify(negative)}`);
  if (prompt !== null) fields.unshift(`"prompt":${JSON.stringify(prompt)}`);
  if (className !== null) fields.unshift(`"class":${JSON.stringify(className)}`);
  if (guidance !== null) fields.push(`"guidance":${guidance}`);
  if (model !== null) fields.unshift(`"model":${JSON.stringify(model)}`);
  if (size !== null) fields.push(`"width":${size.split("x")[0]},"height":${size.split("x")[1]}`);
  if (start) {
    for (const name of ["image", "mask"]) if (start[name] !== null) fields.push(`"${name}":"${start[name]}"`);
    fields.push(`"strength":${start.strength}`);
  }
  return `{${fields.join(",")}}`;
}

/**
 * Draws an image. `watch` hears of `planned(plan)`, `step(step, of, plan)` and `preview(url)` on the way.
 * Gives {url, plan, planned, quality, truncated, timings: {queue_ms, denoise_ms, encode_ms}}.
 */
export async function draw(request, budget, watch, signal) {
  const response = await reach(`/generate?budget=${encodeURIComponent(budget)}`, {
    method: "POST",
    headers: { "content-type": "application/json", accept: "text/event-stream, image/png;q=0.5" },
    body: bodyOf(request),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const type = response.headers.get("content-type") ?? "";
  return type.startsWith("text/event-stream") ? streamed(response, watch) : plain(response, watch);
}

/** A JSON document of the server. */
export async function get(path) {
  const response = await reach(path, {});
  if (!response.ok) throw await refusal(response);
  return response.json();
}

let key = null;

/** Sends an API key with every request from here on. */
export function useKey(text) {
  key = text;
}

async function reach(path, options) {
  const headers = key ? { ...options.headers, authorization: `Bearer ${key}` } : options.headers;
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server could not be reached.");
  }
}

async function refusal(response) {
  const { error } = await response.json().catch(() => ({}));
  return sentence(error ?? { message: `the server answered with status ${response.status}` }, response.headers.get("retry-after"));
}

/** An error of the server's as a sentence for people. */
function sentence({ code, message, param, fastest }, retryAfter) {
  let text = message.charAt(0).toUpperCase() + message.slice(1);
  if (fastest && !message.includes(fastest.plan)) text += `; the fastest is ${fastest.plan}, ${Math.round(fastest.ms)} ms`;
  if (retryAfter && !message.includes("retry")) text += `; retry in ${retryAfter} s`;
  const error = new Refusal(`${text.replace(/\.$/, "")}.`);
  return Object.assign(error, { code, field: param });
}

async function plain(response, watch) {
  const plan = response.headers.get("x-accordion-plan") ?? "";
  watch.planned(plan);
  const timing = response.headers.get("server-timing") ?? "";
  const ms = (name) => Number(new RegExp(`${name};dur=([0-9.]+)`).exec(timing)?.[1] ?? 0);
  const quality = response.headers.get("x-accordion-quality");
  return {
    url: URL.createObjectURL(await response.blob()),
    plan,
    planned: response.headers.get("x-accordion-planned") ?? plan,
    truncated: response.headers.get("x-accordion-truncated")?.split(", ") ?? [],
    quality: quality === null ? null : Number(quality),
    timings: { queue_ms: ms("queue"), denoise_ms: ms("denoise"), encode_ms: ms("encode") },
  };
}

async function streamed(response, watch) {
  let image = null;
  for await (const { event, data } of events(response.body)) {
    if (event === "error") throw sentence(data);
    if (event === "planned") watch.planned(data.plan);
    if (event === "step") watch.step(data.step, data.of, data.plan);
    if (event === "preview") watch.preview(data.url);
    if (event === "image") image = { ...data, url: `data:${data.media_type};base64,${data.b64_json}` };
  }
  if (!image) throw new Refusal("The stream ended before the image came.");
  return image;
}

/** The server-sent events of a body, their data read as JSON. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text = (text + value).replaceAll("\r\n", "\n");
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const field = (name) =>
        lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).replace(/^ /, "")).join("\n");
      const data = field("data");
      if (data) yield { event: field("event") || "message", data: JSON.parse(data) };
    }
  }
}
