// Keys for the buttons of a question, and no second click while an answer is on its way.
"use strict";
const form = document.getElementById("answer");
const undo = document.getElementById("undo");
let sent = false;

function wait(waits) {
  sent = waits;
  for (const button of document.querySelectorAll("button")) button.setAttribute("aria-disabled", String(waits));
}

for (const each of [form, undo]) {
  each?.addEventListener("submit", (event) => {
    if (sent) {
      event.preventDefault();
      return;
    }
    wait(true);
    setTimeout(wait, 10000, false); // The connection was lost: the same answer can be sent again.
  });
}

// A page that the back button brings from memory can be used again: the server knows what counts.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) window.location.reload();
});

const choices = [...form.querySelectorAll('button[value]')];
const press = (value) => choices.find((button) => button.value === value)?.click();

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const pair = choices.filter((button) => /^\d$/.test(button.value)).length === 2;
  if (pair && event.key === "ArrowLeft") press("1");
  else if (pair && event.key === "ArrowRight") press("2");
  else if (/^[1-9]$/.test(event.key)) press(event.key);
  else if (event.key === "=") press("tie");
  else if (event.key === "s" || event.key === "S") press("skip");
  else if (event.key === "u" || event.key === "U") undo?.querySelector("button").click();
  else return;
  event.preventDefault();
});
