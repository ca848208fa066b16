"use strict";
// Shows the numbers of the nearest step under the pointer, and filters samples. The page is complete
// without it.
const pointers = JSON.parse(document.getElementById("pointers").textContent);

function nearest(points, position) {
  return points.reduce((best, point) =>
    Math.abs(point[0] - position) < Math.abs(best[0] - position) ? point : best);
}

function show(plot, chart, event) {
  const box = plot.getBoundingClientRect();
  const position = ((event.clientX - box.left) / box.width - chart.left) / (chart.right - chart.left);
  const cursor = plot.querySelector(".cursor");
  const tip = plot.querySelector(".tip");
  if (position < 0 || position > 1) return hide(plot);
  const found = chart.lines.map(line => ({ line, point: nearest(line.points, position) }));
  const main = found.reduce((best, other) =>
    Math.abs(other.point[0] - position) < Math.abs(best.point[0] - position) ? other : best).point;
  tip.replaceChildren(document.createTextNode("step " + main[1]));
  for (const { line, point } of found) {
    if (Math.abs(point[0] - main[0]) > 0.03) continue; // this curve has no number near here
    const row = document.createElement("div");
    const at = point[1] === main[1] ? "" : " (step " + point[1] + ")";
    row.textContent = line.label + ": " + point[2] + at;
    tip.append(row);
  }
  const left = box.width * (chart.left + main[0] * (chart.right - chart.left));
  cursor.style.display = tip.style.display = "block";
  cursor.style.left = left + "px";
  const onRight = left < box.width / 2;
  tip.style.left = onRight ? left + 10 + "px" : "auto";
  tip.style.right = onRight ? "auto" : box.width - left + 10 + "px";
}

function hide(plot) {
  plot.querySelector(".cursor").style.display = "none";
  plot.querySelector(".tip").style.display = "none";
}

for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const plot = figure.querySelector(".plot");
  const chart = pointers[figure.dataset.chart];
  plot.addEventListener("pointermove", event => show(plot, chart, event));
  plot.addEventListener("pointerdown", event => show(plot, chart, event));
  plot.addEventListener("pointerleave", () => hide(plot));
}

// Hides the prompts without the words that are looked for, and opens the steps with them.
function filter(browser) {
  const words = browser.querySelector("input").value.trim().toLowerCase();
  const chosen = browser.querySelector("select")?.value ?? "";
  const all = browser.querySelectorAll(".prompt");
  let shown = 0;
  for (const prompt of all) {
    const texts = [...prompt.querySelectorAll(".text")].map(text => text.textContent.toLowerCase());
    const step = prompt.closest("[data-step]")?.dataset.step ?? "";
    prompt.hidden = (chosen && step !== chosen) || !texts.some(text => text.includes(words));
    shown += !prompt.hidden;
  }
  for (const step of browser.querySelectorAll("[data-step]")) {
    step.hidden = !step.querySelector(".prompt:not([hidden])");
    if (words || chosen) step.open = !step.hidden;
  }
  browser.querySelector("output").textContent = shown + " of " + all.length + " prompts";
}

for (const browser of document.querySelectorAll(".browser")) {
  const filters = browser.querySelector(".filters");
  filters.hidden = false;
  filters.addEventListener("input", () => filter(browser));
  filter(browser);
}
