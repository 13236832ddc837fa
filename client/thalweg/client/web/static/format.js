// Numbers, times and states for people.

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export function whole(value) {
  return value === null || value === undefined ? "–" : grouped.format(value);
}

/** A measured value with about four digits. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(2).replace("e+", "e");
  return size >= 1000 ? grouped.format(value) : String(Number(value.toPrecision(4)));
}

export function percent(fraction) {
  return fraction === null || fraction === undefined ? "–" : `${(fraction * 100).toFixed(1)} %`;
}

export function bytes(count) {
  const names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let place = 0;
  while (count >= 1024 && place < names.length - 1) [count, place] = [count / 1024, place + 1];
  return `${place && count < 100 ? count.toFixed(1) : Math.round(count)} ${names[place]}`;
}

/** A time span. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return seconds <= 0 ? "0 s" : "< 1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
  return `${Math.round(seconds / 86400)} days`;
}

export function ago(time) {
  const seconds = Math.max(0, Date.now() / 1000 - time);
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

export function date(time) {
  return clock.format(new Date(time * 1000));
}

/** The value of a metric: a fraction as a percentage. */
export function metric(name, value) {
  return name.includes("accuracy") ? percent(value) : number(value);
}

/** The metric that tells most about a job: its accuracy, else its loss. */
export function headline(metrics) {
  if (!metrics) return "–";
  return "accuracy" in metrics ? percent(metrics.accuracy) : `loss ${number(metrics.loss)}`;
}

export function plural(count, word) {
  return `${whole(count)} ${word}${count === 1 ? "" : "s"}`;
}
