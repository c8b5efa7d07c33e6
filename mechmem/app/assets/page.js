"use strict";
// The theme of the figures follows the machine's; Ctrl+Enter asks. Nothing is computed here.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function tell() {
  const ready = window.dash_clientside && window.dash_clientside.set_props && document.getElementById("main");
  if (!ready) { window.setTimeout(tell, 100); return; }
  window.dash_clientside.set_props("theme", {data: dark.matches ? "dark" : "light"});
}
dark.addEventListener("change", tell);
tell();
// Dash's menus and choices have no name of their own, and menus hide from a screen reader what the keyboard reaches.
function name() {
  for (const button of document.querySelectorAll("button.dash-dropdown")) {
    const label = document.getElementById(button.id + "-label");
    const reached = button.parentElement.querySelector(".dash-dropdown-focus-target");
    const said = label ? label.textContent + ": " + button.textContent.trim() : "";
    for (const one of [button, reached]) {
      if (!one || !said || one.getAttribute("aria-label") === said) continue;
      one.setAttribute("aria-label", said);
      one.removeAttribute("aria-labelledby");
      one.removeAttribute("aria-hidden");
    }
  }
  // Dash puts the cursor back into every input that waits for a pause; a slider has none.
  const slider = document.getElementById("strength");
  if (slider) slider.setSelectionRange = () => {};
  for (const list of document.querySelectorAll('[role="listbox"]:not([aria-label])')) {
    const legend = list.closest("fieldset") && list.closest("fieldset").querySelector("legend");
    const open = document.querySelector('button.dash-dropdown[aria-expanded="true"]');
    const label = legend || (open && document.getElementById(open.id + "-label"));
    if (label) list.setAttribute("aria-label", label.textContent);
    if (legend) list.setAttribute("role", "radiogroup");
  }
}
new MutationObserver(name).observe(document.documentElement, {childList: true, subtree: true, characterData: true});
document.addEventListener("click", event => {
  if (event.target.id === "own") document.getElementById("wording-0").focus();
});
document.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const ask = document.getElementById("ask");
    if (ask) { document.activeElement.blur(); ask.click(); }
  }
});
