// A plan's text, such as dpmpp2m-12@0.250*8,full*4~logsnr, as a picture: one column a step, as high as its subnet is wide.

const SVG = "http://www.w3.org/2000/svg";
// More columns than this would be hairlines.
const MOST_COLUMNS = 48;

/** An SVG element. */
export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The ratio of each step's subnet, or an empty list for a text that is no plan. */
export function ratios(plan) {
  const match = /^[a-z0-9]+-(\d+)@([^~^]+)/.exec(plan);
  if (!match) return [];
  const ratio = (name) => (name === "full" ? 1 : Number(name));
  const steps = Number(match[1]);
  return match[2].split(",").flatMap((run) => {
    const [name, count] = run.split("*");
    return Array(count ? Number(count) : steps).fill(ratio(name));
  });
}

/** How many of a plan's steps, the first ones, are left out of an image that starts from a picture. */
export function leftOut(plan) {
  const strength = /~strength=([0-9.]+)/.exec(plan);
  // A share of as many as there were before the plan changed on the way.
  const steps = Number(/~respace=\d+\/(\d+)/.exec(plan)?.[1] ?? ratios(plan).length);
  return strength ? Math.max(0, steps - Math.max(1, Math.floor(steps * Number(strength[1])))) : 0;
}

/** The picture of a plan, hollow where steps are left out. `fill(share)` darkens the columns of the steps that are done, of those that are made. */
export function glyph(plan) {
  const all = ratios(plan);
  const columns = Math.min(all.length, MOST_COLUMNS);
  const [pitch, height] = [5, 20];
  const picture = svg("svg", { class: "glyph", viewBox: `0 0 ${columns * pitch} ${height}`, width: columns * pitch, height, "aria-hidden": "true" });
  const bars = Array.from({ length: columns }, (_, column) => {
    const tall = Math.max(2, all[Math.floor((column * all.length) / columns)] * height);
    return svg("rect", { x: column * pitch + 0.5, y: height - tall, width: pitch - 1.5, height: tall, rx: 0.75 });
  });
  picture.append(...bars);
  const first = columns && Math.min(Math.round((leftOut(plan) * columns) / all.length), columns - 1);
  bars.slice(0, first).forEach((bar) => bar.classList.add("left-out"));
  const made = bars.slice(first);
  const fill = (share) => made.forEach((bar, index) => bar.classList.toggle("done", index < Math.round(share * made.length)));
  return { picture, fill };
}

/** A plan's text, which may break after `@` and `,` and before `~` but nowhere else. */
export function text(plan) {
  const pieces = plan.match(/~?[^@,~]+[@,]?/g) ?? [];
  return pieces.flatMap((piece) => {
    const span = document.createElement("span");
    span.textContent = piece;
    return [span, document.createElement("wbr")];
  });
}
