// Numbers as people read them.

/** A time, with three significant digits at most. */
export function milliseconds(ms) {
  if (ms >= 9995) return `${(ms / 1000).toFixed(1)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  if (ms >= 100) return `${Math.round(ms)} ms`;
  return `${ms >= 10 ? ms.toFixed(1) : ms.toFixed(2)} ms`;
}

/** A deadline, which is a whole number of milliseconds. */
export function deadline(ms) {
  return ms >= 1000 ? `${ms / 1000} s` : `${ms} ms`;
}

/** A quality from 0 to 1. */
export function share(quality) {
  return quality.toFixed(3);
}

/** A deadline: a whole number of milliseconds that is easy to say, never below `ms`. */
export function roundUp(ms) {
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(ms)) - 1);
  return Math.ceil(ms / unit - 1e-9) * unit;
}
