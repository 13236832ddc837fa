// What can be done with a job, as far as the user's role allows: the server refuses the rest in any case.

import { ask } from "./dialogs.js";
import { h, toast } from "./dom.js";
import { plural } from "./format.js";
import { post, session } from "./net.js";
import { pick } from "./picker.js";
import { ENDED } from "./state.js";

/** Whether the user may call a method of the server on a job. Viewers look only; submitters act on their own jobs. */
function may(method, job) {
  const { name, role, methods } = session();
  return methods.includes(method) && role !== "viewer" && (role !== "submitter" || !job.owner || job.owner === name);
}

/** The buttons of a job. */
export function actions(id, go) {
  const path = `/api/jobs/${encodeURIComponent(id)}`;
  const button = (word, act, kind = "") => h("button", { type: "button", class: kind, hidden: true, click: act }, word);
  let job = null;

  const cancel = button("Cancel", () =>
    ask({
      title: `Cancel ${id}?`,
      content: [h("p", {}, "It ends. The parameters trained so far are kept, and it can be resumed.")],
      confirm: "Cancel the job",
      kind: "danger",
      async send() {
        await post(`${path}/cancel`);
        toast(`${id} is being cancelled.`);
      },
    }),
  );
  const resume = button("Resume", () =>
    ask({
      title: `Resume ${id}?`,
      content: [h("p", {}, "It goes on from its last checkpoint.")],
      confirm: "Resume the job",
      async send() {
        await post(`${path}/resume`);
        toast(`${id} is resumed.`);
      },
    }),
  );
  const scale = button("Scale", () => {
    const workers = h("input", { id: "workers", type: "number", min: 0, max: 10000, step: 1, required: true, value: job.wanted_workers });
    const priority = h("input", { id: "priority", type: "number", min: -1000, max: 1000, step: 1, required: true, value: job.priority });
    ask({
      title: `Scale ${id}`,
      content: [
        h("label", { for: "workers" }, "Workers"),
        workers,
        h("p", { class: "hint" }, "0 pauses the job."),
        h("label", { for: "priority" }, "Priority"),
        priority,
        h("p", { class: "hint" }, "Jobs of higher priority start first and get workers first. Neither changes the result."),
      ],
      confirm: "Scale",
      async send() {
        const { note } = await post(`${path}/scale`, { workers: Number(workers.value), priority: Number(priority.value) });
        toast(note || `${id} wants ${plural(Number(workers.value), "worker")}, at priority ${priority.value}.`, note ? "note" : "done");
      },
    });
  });
  const weights = h("a", { class: "button", href: `${path}/weights`, download: `${id}.safetensors`, hidden: true }, "Download weights");
  const compare = h("button", { type: "button", click: () => pick(id, (other) => go(`/jobs/${encodeURIComponent(id)}/with/${encodeURIComponent(other)}`)) }, "Compare…");

  return {
    element: h("div", { class: "actions", role: "group", "aria-label": "Actions" }, scale, cancel, resume, weights, compare),
    show(now) {
      job = now;
      const ended = ENDED.has(job.state);
      cancel.hidden = ended || !may("CancelJob", job);
      scale.hidden = ended || !may("ScaleJob", job);
      resume.hidden = !["FAILED", "CANCELLED"].includes(job.state) || !may("ResumeJob", job);
      weights.hidden = !(ended ? job.weights_sha256 : job.step) || !may("DownloadParameters", job);
    },
  };
}
