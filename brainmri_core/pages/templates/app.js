"use strict";
const drop = document.getElementById("drop");
const input = document.getElementById("file");
const status = document.getElementById("status");
const result = document.getElementById("result");
let latest = 0;

async function classify(file) {
  const mine = ++latest;
  result.hidden = true;
  result.replaceChildren();
  if (file.size > Number(input.dataset.max)) {
    status.textContent = `${file.name} is too large for this page.`;
    return;
  }
  status.textContent = `Looking at ${file.name} …`;
  try {
    const answer = await fetch("/classify", {
      method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file,
    });
    const text = await answer.text();
    if (mine !== latest) return;
    // the server has escaped every value in it, and the page's policy runs no script from it
    result.innerHTML = text;
    result.hidden = false;
    status.textContent = file.name;
  } catch (error) {
    if (mine === latest) status.textContent = "The program that shows this page does not answer; is it still running?";
  }
}

input.addEventListener("change", () => { if (input.files.length) classify(input.files[0]); });
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
drop.addEventListener("drop", (event) => { if (event.dataTransfer.files.length) classify(event.dataTransfer.files[0]); });
