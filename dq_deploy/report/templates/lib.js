"use strict";
// What everything else on the page draws with. Text enters the page as text only: no name is ever read as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = document.getElementById("namespace").namespaceURI; // so that the page holds no address, not even this one
const darkScheme = matchMedia("(prefers-color-scheme: dark)");

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const finite = (values) => values.filter((value) => value !== null && Number.isFinite(value));
const decibels = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(1)} dB`);
const percent = (value) => (value === null || value === undefined ? "–" : `${figures(100 * value, 2)} %`);
const short = (name, most) => (name.length <= most ? name : `…${name.slice(name.length - most + 1)}`);

function figures(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const text = Number(value.toPrecision(digits)).toString();
  return text.replace("-", "−");
}

// Round numbers that divide [low, high] into about `count` parts; on a logarithmic axis 1, 2 and 5 of every decade.
function ticks(low, high, count, log = false) {
  if (log) {
    const found = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade++) {
      for (const step of [1, 2, 5]) found.push(step * 10 ** decade);
    }
    const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
    const every = Math.ceil(inside.length / (count + 1));
    return inside.length > 1 ? inside.filter((_, index) => index % every === 0) : ticks(low, high, count);
  }
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) {
    found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  }
  return found;
}

function scale(domain, range, log = false) {
  const [low, high] = log ? domain.map(Math.log10) : domain;
  const span = high - low || 1;
  return (value) => range[0] + (((log ? Math.log10(value) : value) - low) / span) * (range[1] - range[0]);
}

// Draws into `host` at its width, and again when that or the colour scheme changes. Returns a function that draws again.
function responsive(host, draw) {
  let width = 0;
  let waiting = 0;
  const redraw = () => {
    width = Math.floor(host.clientWidth);
    if (width > 0) host.replaceChildren(draw(width));
  };
  new ResizeObserver(() => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => Math.floor(host.clientWidth) !== width && redraw());
  }).observe(host);
  darkScheme.addEventListener("change", redraw);
  redraw();
  return redraw;
}

const tip = document.getElementById("tip");

function showTip(event, lines) {
  tip.replaceChildren(...lines.map((line) => html("div", null, line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - 14 - box.width : event.clientX + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - box.height - 4)}px`;
}

const hideTip = () => {
  tip.hidden = true;
};

function legend(entries) {
  const sample = (entry) =>
    svg("svg", { width: 22, height: 12, "aria-hidden": "true" },
      entry.marker
        ? svg("circle", { cx: 11, cy: 6, r: 4, class: `${entry.colour} ${entry.marker}`, "stroke-width": 1.5 })
        : svg("line", { x1: 0, x2: 22, y1: 6, y2: 6, class: `line ${entry.colour} ${entry.dashed ? "dashed" : ""}` }));
  return html("ul", { class: "legend" }, ...entries.map((entry) => html("li", null, sample(entry), entry.name)));
}
