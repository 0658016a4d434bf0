// One budget's image: how it comes about, and then what it took.

import { glyph, text } from "./plan.js";
import { milliseconds, share } from "./words.js";

const PARTS = [["queue", "queue_ms"], ["denoise", "denoise_ms"], ["encode", "encode_ms"]];

/** An HTML element. */
export function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** A card for the budget called `title`, for an image of `size` pixels; `edit(url)` starts from it. */
export class Card {
  constructor(title, size, edit) {
    this.title = title;
    this.edit = edit;
    this.total = null;
    this.image = html("img", { alt: "", width: size.width, height: size.height, hidden: "" });
    this.frame = html("div", { class: "frame" }, this.image);
    this.frame.style.setProperty("--width", `${size.width}px`);
    this.frame.style.setProperty("--shape", `${size.width} / ${size.height}`);
    this.plan = html("p", { class: "plan" });
    this.steps = html("div", { class: "steps" });
    this.facts = html("div", { class: "facts" }, html("p", { class: "quiet" }, "waits for its turn"));
    this.element = html("figure", { class: "card", "data-state": "waiting" }, this.frame,
      html("figcaption", {}, html("h3", {}, title), this.plan, this.steps, this.facts));
  }

  /** Its turn has come. */
  begin() {
    this.element.dataset.state = "running";
    this.facts.replaceChildren(html("p", { class: "quiet" }, "drawing …"));
  }

  planned(plan) {
    if (plan === this.plan.textContent) return;
    this.plan.replaceChildren(html("code", { class: "plan-text" }, ...text(plan)));
    this.glyph = glyph(plan);
    this.steps.replaceChildren(this.glyph.picture);
  }

  step(step, of, plan) {
    if (plan) this.planned(plan);
    this.glyph?.fill(step / of);
    this.facts.replaceChildren(html("p", { class: "quiet" }, `step ${step} of ${of}`));
  }

  preview(url) {
    this.image.src = url;
    this.image.hidden = false;
  }

  /** The image is here. */
  finish(result, alt) {
    this.element.dataset.state = "done";
    this.preview(result.url);
    this.image.alt = alt;
    this.planned(result.plan);
    this.glyph.fill(1);
    this.result = result;
    this.total = PARTS.reduce((sum, [, key]) => sum + result.timings[key], 0);
    const bar = html("div", { class: "time", "aria-hidden": "true" });
    for (const [name, key] of PARTS) {
      const part = html("span", { class: name });
      part.style.flexGrow = result.timings[key];
      bar.append(part);
    }
    this.bar = bar;
    const numbers = html("p", { class: "numbers" }, html("strong", {}, milliseconds(this.total)));
    if (result.quality !== null && result.quality !== undefined) numbers.append(" ", html("span", { class: "quality" }, `quality ${share(result.quality)}`));
    const parts = html("ul", { class: "parts" }, ...PARTS.map(([name, key]) =>
      html("li", { class: name }, html("span", {}, name), " ", milliseconds(result.timings[key]))));
    this.facts.replaceChildren(numbers, bar, parts);
    if (result.truncated?.length) {
      this.facts.append(html("p", { class: "hint" }, "the model read the beginning of the text alone"));
    }
    if (result.planned && result.planned !== result.plan) {
      this.facts.append(html("p", { class: "hint" }, "planned ", html("code", { class: "plan-text" }, ...text(result.planned))));
    }
    const edit = html("button", { class: "small", type: "button", "aria-label": `Edit this: ${this.title}` }, "Edit this");
    edit.addEventListener("click", () => this.edit(result.url));
    this.facts.append(edit);
  }

  /** There will be no image. */
  fail(message) {
    this.element.dataset.state = "failed";
    this.image.hidden = true;
    this.facts.replaceChildren(html("p", { class: "problem" }, message));
  }

  /** Makes the length of the bar comparable with those of other cards. */
  scale(longest) {
    if (this.bar) this.bar.style.width = `${Math.max(4, (100 * this.total) / longest)}%`;
  }
}
