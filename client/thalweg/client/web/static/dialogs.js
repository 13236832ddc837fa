// Questions before an action.

import { h, say } from "./dom.js";

/** Shows a dialog with some content. `send` is called when the user confirms; what it throws is shown, and the dialog stays. */
export function ask({ title, content, confirm, kind = "primary", send }) {
  const problem = h("p", { class: "problem", role: "alert" });
  const button = h("button", { class: kind, type: "submit" }, confirm);
  const dialog = h(
    "dialog",
    { "aria-labelledby": "dialog-title", close: () => dialog.remove() },
    h(
      "form",
      { submit: sent },
      h("h2", { id: "dialog-title" }, title),
      ...content,
      problem,
      h("div", { class: "buttons" }, h("button", { type: "button", click: () => dialog.close() }, "Back"), button),
    ),
  );

  async function sent(event) {
    event.preventDefault();
    button.disabled = true;
    try {
      await send();
      dialog.close();
    } catch (error) {
      say(problem, error.message);
      button.disabled = false;
    }
  }

  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
