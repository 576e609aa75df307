// Draws the page's plots in the colours of its scheme and keeps the threshold slider's figures.
"use strict";
const text = document.getElementById("content").textContent;
const { confusion } = JSON.parse(text);
const hidden = new Set(); // findings switched off in the legend of the curves

function contents() {
  const nav = document.querySelector("nav");
  for (const heading of document.querySelectorAll("main > section > h2")) {
    const link = document.createElement("a");
    link.href = `#${heading.parentElement.id}`;
    link.textContent = heading.textContent;
    nav.append(link);
  }
}

function coloured() {
  const style = getComputedStyle(document.documentElement);
  return JSON.parse(text.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim())).plots;
}

function axis(given, ink) {
  const title = { text: given.title?.text ?? given.title ?? "", standoff: 8, font: { size: 12 } };
  const lines = { gridcolor: ink("--line"), linecolor: ink("--rule"), tickcolor: ink("--rule") };
  return { zeroline: false, automargin: true, fixedrange: true, ...lines, ...given, title };
}

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const ink = (name) => style.getPropertyValue(name).trim();
  return {
    showlegend: false,
    margin: { l: 44, r: 8, t: 8, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: ink("--quiet") },
    hoverlabel: { bgcolor: ink("--paper"), bordercolor: ink("--rule"), font: { color: ink("--ink") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 } },
    ...layout,
    xaxis: axis(layout.xaxis, ink),
    yaxis: axis(layout.yaxis, ink),
  };
}

const seen = new Set(); // places that came near the window: only these are drawn

function draw(places = seen) {
  const figures = coloured();
  for (const place of places) {
    const { data, layout } = figures[place];
    for (const trace of data) trace.visible = !hidden.has(trace.meta);
    Plotly.react(place, data, themed(layout), { displayModeBar: false, responsive: true });
  }
  for (const place of places) seen.add(place);
}

// reading plotly takes longer than all the rest: the page is there before it
function loadPlotly() {
  const script = document.createElement("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.head.append(script);
}

function drawWhenNear() {
  const watch = new IntersectionObserver(
    (entries) => {
      const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
      near.forEach((plot) => watch.unobserve(plot));
      if (near.length) draw(near.map((plot) => plot.id));
    },
    { rootMargin: "50% 0px" },
  );
  const plots = [...document.querySelectorAll(".plot")];
  plots.forEach((plot) => watch.observe(plot));
  addEventListener("beforeprint", () => draw(plots.map((plot) => plot.id)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
}

function legend() {
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const finding = Number(button.dataset.finding);
      hidden.has(finding) ? hidden.delete(finding) : hidden.add(finding);
      button.setAttribute("aria-pressed", String(!hidden.has(finding)));
      for (const plot of document.querySelectorAll(".square.js-plotly-plot")) {
        const traces = plot.data.flatMap((trace, at) => (trace.meta === finding ? [at] : []));
        if (traces.length) Plotly.restyle(plot, { visible: !hidden.has(finding) }, traces);
      }
    });
  }
}

function slider() {
  const [finding, stop] = ["finding", "stop"].map((id) => document.getElementById(id));
  if (!finding) return;
  const show = (id, value) => (document.getElementById(id).textContent = value);
  const rate = (part, whole) => (whole ? (part / whole).toFixed(3) : "–");
  const update = () => {
    const { positives, negatives, stops, tp, fp, start, fitted } = confusion[finding.value];
    const at = Number(stop.value);
    const [hits, alarms] = [tp[at], fp[at]];
    const threshold = stops[at].toPrecision(4) + (fitted && at === start ? ", the operating point" : "");
    stop.setAttribute("aria-valuetext", threshold);
    show("at", threshold);
    for (const [id, count] of Object.entries({ tp: hits, fp: alarms, fn: positives - hits, tn: negatives - alarms })) {
      show(id, count.toLocaleString("en"));
    }
    show("precision", rate(hits, hits + alarms));
    show("recall", rate(hits, positives));
    show("specificity", rate(negatives - alarms, negatives));
    show("f1", positives ? rate(2 * hits, hits + alarms + positives) : "–");
    show("flagged", `${((100 * (hits + alarms)) / (positives + negatives)).toFixed(1)} %`);
  };
  const reset = () => {
    const { stops, start, fitted } = confusion[finding.value];
    show("fitted", fitted ? "Back to the operating point" : "Back to 0.5");
    stop.max = stops.length - 1;
    stop.value = start;
    update();
  };
  finding.addEventListener("change", reset);
  stop.addEventListener("input", update);
  document.getElementById("fitted").addEventListener("click", reset);
  reset();
}

contents();
legend();
slider();
requestAnimationFrame(() => setTimeout(() => { loadPlotly(); drawWhenNear(); }));
