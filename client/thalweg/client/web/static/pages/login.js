// The form that asks for a token.

import { h, say } from "../dom.js";
import { post } from "../net.js";

export function loginPage(main, entered) {
  const problem = h("p", { class: "problem", role: "alert" });
  const token = h("input", {
    id: "token",
    type: "password",
    name: "token",
    autocomplete: "current-password",
    required: true,
    spellcheck: "false",
    "aria-describedby": "token-hint",
  });
  const button = h("button", { class: "primary", type: "submit" }, "Log in");

  async function send(event) {
    event.preventDefault();
    button.disabled = true;
    try {
      entered((await post("/api/login", { token: token.value })).session);
    } catch (error) {
      say(problem, error.message);
      token.select();
      token.focus();
    } finally {
      button.disabled = false;
    }
  }

  main.append(
    h(
      "form",
      { class: "card login", submit: send },
      h("h1", {}, "Log in"),
      h("label", { for: "token" }, "Token"),
      token,
      h("p", { class: "hint", id: "token-hint" }, "Your token for the server. It stays in the page's own server; the browser keeps a random session id."),
      problem,
      button,
    ),
  );
  token.focus();
  return () => {};
}
