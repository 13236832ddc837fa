// The curves of a job, put together from what the stream sends.

/** A curve: its points' steps, values and extremes, the last two as arrays or null. */
export function curve() {
  return { steps: [], values: [], low: null, high: null };
}

/** Takes changes of a job's curves: each replaces the points from an index on. */
export function take(curves, changes) {
  for (const [name, change] of Object.entries(changes)) {
    const known = (curves[name] ??= curve());
    for (const part of ["steps", "values"]) known[part].splice(change.from, Infinity, ...change[part]);
    for (const part of ["low", "high"]) {
      if (!change[part]) known[part] = null;
      else (known[part] ??= []).splice(change.from, Infinity, ...change[part]);
    }
  }
}
