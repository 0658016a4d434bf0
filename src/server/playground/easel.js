// The picture that images start from, as large as the model draws, and what of it is painted to be drawn anew.

import { html } from "./card.js";
import { svg } from "./plan.js";

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
// The centre of a pixel lies within this of every point, so that no brush is too fine to paint.
const LEAST_RADIUS = Math.SQRT1_2;
const PAINT = "#e8590c";

/** The picture at a URL that the page may load. Fails for what is none. */
export async function pictureAt(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  // Some drawings have no size of their own.
  if (!picture.naturalWidth || !picture.naturalHeight) throw new Error("a picture without a size");
  return picture;
}

/** Where the picture is shown and painted on. `files` are those of a request, as URLs that hold them: {image, mask}, the mask null where nothing is painted. */
export class Easel {
  /** `brush` is the slider of its size, in per cent of the picture's shorter side; `changed()` hears of each stroke. */
  constructor(element, brush, changed) {
    Object.assign(this, { element, brush, changed });
    this.show(null);
    this.sheet = html("canvas", { class: "picture" });
    this.film = html("canvas", { class: "film", tabindex: "0", role: "application", "aria-label": "What is drawn anew: arrow keys move the brush, the space bar paints, with Shift it wipes", "aria-describedby": "easel-hint" });
    // Read after each stroke.
    this.film2d = this.film.getContext("2d", { willReadFrequently: true });
    this.ring = svg("circle");
    this.over = svg("svg", { class: "ring", "aria-hidden": "true" }, this.ring);
    this.element.append(this.sheet, this.film, this.over);
    this.film.addEventListener("pointerdown", (event) => this.press(event));
    this.film.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) this.film.addEventListener(end, () => this.rest());
    this.film.addEventListener("pointerleave", () => this.point(null));
    this.film.addEventListener("keydown", (event) => this.type(event));
    this.film.addEventListener("focus", () => this.film.matches(":focus-visible") && this.point(this.at));
    this.film.addEventListener("blur", () => this.point(null));
    brush.addEventListener("input", () => this.ring.setAttribute("r", this.radius()));
  }

  /** Puts a picture on it, or takes the one on it away. */
  show(picture) {
    Object.assign(this, { picture, dabs: [], stroke: null, isPainted: false, files: null });
  }

  /** Draws picture and paint anew for this size and this number of channels: the middle of the picture, as much as fills it. */
  fit({ width, height, channels }) {
    const { naturalWidth, naturalHeight } = this.picture;
    this.scale = Math.max(width / naturalWidth, height / naturalHeight);
    this.left = (naturalWidth - width / this.scale) / 2;
    this.top = (naturalHeight - height / this.scale) / 2;
    for (const canvas of [this.sheet, this.film]) Object.assign(canvas, { width, height });
    const context = this.sheet.getContext("2d");
    // What the server has behind transparent pixels; being transparent itself would be a mask.
    context.fillStyle = channels === 1 ? "black" : "white";
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, this.left, this.top, width / this.scale, height / this.scale, 0, 0, width, height);
    this.dabs.forEach((dab) => this.paint(dab));
    this.element.classList.toggle("grey", channels === 1);
    this.element.style.setProperty("--shape", `${width} / ${height}`);
    this.over.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.at = { x: width / 2, y: height / 2 };
    this.point(null);
    this.settle();
  }

  /** Wipes all paint. */
  clear() {
    this.dabs = [];
    this.film2d.clearRect(0, 0, this.film.width, this.film.height);
    this.finish();
  }

  /** The brush's, in pixels of the model. */
  radius() {
    return Math.max(LEAST_RADIUS, (Math.min(this.film.width, this.film.height) * this.brush.value) / 200);
  }

  /** Shows the brush at a point, or nowhere for null. */
  point(at) {
    this.over.setAttribute("visibility", at ? "visible" : "hidden");
    if (!at) return;
    for (const [name, value] of [["cx", at.x], ["cy", at.y], ["r", this.radius()]]) this.ring.setAttribute(name, value);
  }

  /** Where a pointer is, in pixels of the model. */
  place(event) {
    const { left, top, width, height } = this.film.getBoundingClientRect();
    return { x: ((event.clientX - left) / width) * this.film.width, y: ((event.clientY - top) / height) * this.film.height };
  }

  press(event) {
    if (event.button !== 0 && event.button !== 5) return;
    this.film.setPointerCapture(event.pointerId);
    // The other end of a pen wipes.
    this.stroke = { wipes: event.shiftKey || event.button === 5 };
    this.at = this.place(event);
    this.point(this.at);
    this.dab(this.at);
  }

  drag(event) {
    const to = this.place(event);
    this.point(to);
    if (!this.stroke) return;
    const { x, y } = this.at;
    const parts = Math.ceil(Math.hypot(to.x - x, to.y - y) / (this.radius() / 2));
    for (let part = 1; part <= parts; part++) this.dab({ x: x + ((to.x - x) * part) / parts, y: y + ((to.y - y) * part) / parts });
    this.at = to;
  }

  /** Ends a stroke. */
  rest() {
    if (!this.stroke) return;
    this.stroke = null;
    this.finish();
  }

  type(event) {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (move) {
      const within = (value, most) => Math.min(Math.max(value, 0), most);
      const [x, y] = move.map((sign) => sign * Math.max(1, this.radius() / 2));
      this.at = { x: within(this.at.x + x, this.film.width), y: within(this.at.y + y, this.film.height) };
    } else {
      this.stroke = { wipes: event.shiftKey };
      this.dab(this.at);
      this.rest();
    }
    this.point(this.at);
  }

  /** Touches the picture with the brush. Kept as a place of the picture, since its pixels are others in another size. */
  dab({ x, y }) {
    const dab = { x: x / this.scale + this.left, y: y / this.scale + this.top, radius: this.radius() / this.scale, wipes: this.stroke.wipes };
    this.dabs.push(dab);
    this.paint(dab);
  }

  /** Pixels whose centre the brush covers are painted, each whole: a mask has no half ones. */
  paint(dab) {
    this.film2d.fillStyle = PAINT;
    const [x, y, radius] = [(dab.x - this.left) * this.scale, (dab.y - this.top) * this.scale, Math.max(LEAST_RADIUS, dab.radius * this.scale)];
    for (let row = Math.ceil(y - radius - 0.5); row + 0.5 <= y + radius; row++) {
      const half = Math.sqrt(Math.max(0, radius ** 2 - (row + 0.5 - y) ** 2));
      const [first, last] = [Math.ceil(x - half - 0.5), Math.floor(x + half - 0.5)];
      if (first > last) continue;
      if (dab.wipes) this.film2d.clearRect(first, row, last - first + 1, 1);
      else this.film2d.fillRect(first, row, last - first + 1, 1);
    }
  }

  finish() {
    this.settle();
    this.changed();
  }

  /** Makes the files of a request: the picture, and a mask where something is painted. */
  settle() {
    const { width, height } = this.film;
    this.isPainted = this.film2d.getImageData(0, 0, width, height).data.some((value) => value > 0);
    this.files = { image: this.sheet.toDataURL("image/png"), mask: this.isPainted ? this.mask() : null };
  }

  /** White where it is painted, black elsewhere. */
  mask() {
    const canvas = html("canvas");
    Object.assign(canvas, { width: this.film.width, height: this.film.height });
    const context = canvas.getContext("2d");
    context.drawImage(this.film, 0, 0);
    for (const [operation, colour] of [["source-in", "white"], ["destination-over", "black"]]) {
      context.globalCompositeOperation = operation;
      context.fillStyle = colour;
      context.fillRect(0, 0, canvas.width, canvas.height);
    }
    return canvas.toDataURL("image/png");
  }
}
