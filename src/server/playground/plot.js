// The frontier: time width (logarithmic), quality upwards, one point a plan.

import { svg } from "./plan.js";
import { deadline, milliseconds, share } from "./words.js";

const EDGE = { left: 52, right: 20, top: 26, bottom: 44 };
// The least distance of two numbers on the axis of time.
const TICK_GAP = 46;

/** The plot of `points`, [{plan, quality, ms}] in ascending order. */
export class Plot {
  /** `width` is in pixels; `names` are the named budgets of plans, by plan; `say(point)` shows a point in words; `choose(point)` draws it. */
  constructor(width, points, metric, names, say, choose) {
    const height = Math.min(Math.max(width * 0.46, 240), 340);
    Object.assign(this, { width, height, points });
    this.say = say;
    const [first, last] = [points[0], points[points.length - 1]];
    const [least, most] = [Math.log(first.ms * 0.85), Math.log(Math.max(last.ms, first.ms * 1.5) * 1.18)];
    const low = Math.min(...points.map((point) => point.quality));
    const floor = Math.max(0, Math.floor((low - 0.02) * 20) / 20);
    this.x = (ms) => EDGE.left + ((Math.log(ms) - least) / (most - least)) * (width - EDGE.left - EDGE.right);
    this.y = (quality) => height - EDGE.bottom - ((quality - floor) / (1 - floor || 1)) * (height - EDGE.top - EDGE.bottom);

    this.deadline = svg("g", { class: "deadline", visibility: "hidden" },
      svg("line", { y1: EDGE.top - 6, y2: height - EDGE.bottom }), svg("text", { y: EDGE.top - 11, "text-anchor": "middle" }));
    this.rings = svg("g", { class: "served" });
    this.dots = points.map((point) => this.dot(point, names[point.plan], choose));
    this.element = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Quality against time of every plan of the frontier; arrow keys move between plans, Enter draws one" });
    this.element.append(this.grid(floor, Math.exp(least), Math.exp(most), metric), this.deadline, this.stairs(Math.exp(most)), ...this.dots, this.labels(names), this.rings);
    this.element.addEventListener("keydown", (event) => this.move(event));
    this.element.addEventListener("mouseleave", () => this.say(null));
    this.tab(0);
  }

  /** Lines and numbers behind the points. */
  grid(floor, from, to, metric) {
    const group = svg("g", { class: "grid", "aria-hidden": "true" });
    const step = 1 - floor > 0.5 ? 0.2 : 1 - floor > 0.2 ? 0.1 : 0.05;
    for (let quality = Math.ceil(floor / step - 1e-9) * step; quality <= 1 + 1e-9; quality += step) {
      const y = this.y(quality);
      group.append(svg("line", { x1: EDGE.left, x2: this.width - EDGE.right, y1: y, y2: y }),
        svg("text", { x: EDGE.left - 10, y: y + 4, "text-anchor": "end" }, quality.toFixed(step < 0.1 ? 2 : 1)));
    }
    let written = -Infinity;
    for (let decade = 10 ** Math.floor(Math.log10(from)); decade <= to; decade *= 10) {
      for (const digit of [1, 2, 5]) {
        const ms = digit * decade;
        if (ms < from || ms > to || this.x(ms) - written < TICK_GAP) continue;
        written = this.x(ms);
        group.append(svg("text", { x: this.x(ms), y: this.height - EDGE.bottom + 20, "text-anchor": "middle" }, ms >= 1000 ? `${ms / 1000} s` : `${ms} ms`));
      }
    }
    group.append(svg("text", { class: "axis", x: this.width - EDGE.right, y: this.height - 6, "text-anchor": "end" }, "time of an image alone"),
      svg("text", { class: "axis", x: 0, y: 11 }, metric ? `quality, ${metric}` : "quality"));
    return group;
  }

  /** The best quality that each time affords. */
  stairs(end) {
    const corners = this.points.map((point, index) => {
      const [x, y] = [this.x(point.ms), this.y(point.quality)];
      return index === 0 ? `M${x} ${y}` : `H${x}V${y}`;
    });
    return svg("path", { class: "stairs", d: `${corners.join("")}H${this.x(end)}` });
  }

  dot(point, name, choose) {
    const label = `${point.plan}: quality ${share(point.quality)}, ${milliseconds(point.ms)}${name ? `, ${name}` : ""}`;
    const [cx, cy] = [this.x(point.ms), this.y(point.quality)];
    const dot = svg("g", { class: "dot", role: "button", tabindex: "-1", "aria-label": label, "data-plan": point.plan },
      svg("circle", { class: "target", cx, cy, r: 11 }), svg("circle", { class: "point", cx, cy, r: 3.6 }));
    dot.addEventListener("mouseenter", () => this.say(point));
    dot.addEventListener("focus", () => this.say(point));
    dot.addEventListener("blur", () => this.say(null));
    dot.addEventListener("click", () => choose(point));
    return dot;
  }

  /** The names of the named budgets, below and right of their points, where the stairs leave room. */
  labels(names) {
    const named = this.points.filter((point) => names[point.plan]);
    return svg("g", { class: "names", "aria-hidden": "true" }, ...named.map((point) => {
      const x = this.x(point.ms);
      const last = x > this.width - EDGE.right - 90;
      return svg("text", { x: last ? x : x + 9, y: this.y(point.quality) + 19, "text-anchor": last ? "middle" : "start" }, names[point.plan]);
    }));
  }

  /** Makes one dot the one that Tab reaches. */
  tab(index) {
    this.dots.forEach((dot, other) => dot.setAttribute("tabindex", other === index ? "0" : "-1"));
    this.current = index;
  }

  move(event) {
    const last = this.dots.length - 1;
    const next = { ArrowRight: this.current + 1, ArrowUp: this.current + 1, ArrowLeft: this.current - 1, ArrowDown: this.current - 1, Home: 0, End: last }[event.key];
    if (next !== undefined) {
      this.tab(Math.min(Math.max(next, 0), last));
      this.dots[this.current].focus();
      event.preventDefault();
    } else if (event.key === "Enter" || event.key === " ") {
      this.dots[this.current].dispatchEvent(new MouseEvent("click"));
      event.preventDefault();
    }
  }

  /** Shows where a deadline lies, or nothing for null. */
  mark(ms) {
    this.deadline.setAttribute("visibility", ms === null ? "hidden" : "visible");
    if (ms === null) return;
    const x = Math.min(Math.max(this.x(ms), EDGE.left), this.width - EDGE.right);
    const [line, text] = this.deadline.children;
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    text.setAttribute("x", Math.min(Math.max(x, EDGE.left + 20), this.width - EDGE.right - 24));
    text.textContent = deadline(ms);
  }

  /** Rings the plans that were served: [{plan, quality, ms}]; one off the frontier lies where it was measured, or at the edge. */
  serve(results) {
    this.rings.replaceChildren(...results.flatMap(({ plan, quality, ms }) => {
      const point = this.points.find((other) => other.plan === plan) ?? { quality, ms };
      if (typeof point.quality !== "number" || !(point.ms > 0)) return [];
      const x = Math.min(Math.max(this.x(point.ms), EDGE.left), this.width - EDGE.right);
      return [svg("circle", { cx: x, cy: this.y(Math.max(point.quality, 0)), r: 7, "data-plan": plan })];
    }));
  }
}
