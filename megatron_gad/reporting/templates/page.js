"use strict";
// Shows the numbers of the nearest step under the pointer. The page is complete without it.
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
