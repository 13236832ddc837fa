// Axes: which numbers are marked, and where a value lies.

const LOG_DECADES = 1.5;

function nice(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  const lead = step / power;
  return (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10) * power;
}

/** An axis with equal steps from low to high, with about `count` marks. */
export function linear(low, high, count) {
  if (!(high > low)) {
    const around = Math.abs(low) || 1;
    [low, high] = [low - around / 2, low + around / 2];
  }
  const step = nice((high - low) / count);
  const marks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) marks.push(Number((index * step).toPrecision(12)));
  return { low, high, marks, text: (mark) => written(mark, step), at: (value) => (value - low) / (high - low) };
}

/** A mark with as many digits as tell it from the next one. */
function written(mark, step) {
  if (mark === 0) return "0";
  const size = Math.abs(mark);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  if (size >= 1e6 || digits > 6) return mark.toExponential(Math.max(0, Math.min(3, Math.floor(Math.log10(size) + 1e-9) + digits))).replace("e+", "e");
  return mark.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** An axis of powers of ten; the values must be positive. */
export function logarithmic(low, high) {
  const [from, to] = [Math.log10(low), Math.max(Math.log10(high), Math.log10(low) + 0.01)];
  const marks = [];
  const every = Math.max(1, Math.ceil((to - from) / 6));
  for (let power = Math.ceil(from - 1e-9); power <= to + 1e-9; power += every) marks.push(10 ** power);
  if (marks.length < 2) for (const lead of [2, 5]) for (let power = Math.floor(from); power <= to; power += 1) marks.push(lead * 10 ** power);
  return {
    low,
    high,
    marks: marks.filter((mark) => mark >= low * 0.999 && mark <= high * 1.001).sort((a, b) => a - b),
    text: (mark) => written(mark, mark),
    at: (value) => (Math.log10(value) - from) / (to - from),
  };
}

/** Whether values are better seen on a logarithmic axis. */
export function spans(low, high) {
  return low > 0 && Math.log10(high / low) > LOG_DECADES;
}
