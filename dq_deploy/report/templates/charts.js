// Charts as inline SVG: lines over timesteps, two ends of a change, bars with intervals, a cloud of points.

const LABEL_WIDTH = 6.2; // pixels a character of an axis label takes, about

function plotArea(width, height, left, bottom = 38) {
  return { left, right: width - 12, top: 8, bottom: height - bottom, width, height };
}

function frame(area, description, ...children) {
  return svg("svg", { viewBox: `0 0 ${area.width} ${area.height}`, width: area.width, height: area.height, role: "img", "aria-label": description }, ...children);
}

function axisX(area, x, values, label, format = figures) {
  const marks = values.map((value) => {
    const within = area.width - (LABEL_WIDTH * format(value).length) / 2; // a label at the right end stays whole
    return svg("text", { x: Math.min(x(value), within), y: area.bottom + 16, "text-anchor": "middle" }, format(value));
  });
  const title = svg("text", { x: (area.left + area.right) / 2, y: area.bottom + 33, "text-anchor": "middle" }, label);
  return svg("g", null, svg("path", { class: "axis", d: `M${area.left} ${area.bottom}H${area.right}` }), ...marks, title);
}

function axisY(area, y, values, format = figures) {
  return svg("g", null, ...values.flatMap((value) => [
    svg("path", { class: "grid", d: `M${area.left} ${y(value)}H${area.right}` }),
    svg("text", { x: area.left - 8, y: y(value) + 4, "text-anchor": "end" }, format(value)),
  ]));
}

function padded(values, log, zero = false) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (zero) low = Math.min(0, low);
  if (log) return low === high ? [low / 1.5, high * 1.5] : [low / 1.06, high * 1.06];
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low - (zero && low === 0 ? 0 : margin), high + margin];
}

// series: [{name, values, colour, dashed, marker, line}]; `chosen` is the index of a marked x; a click calls `onpick` with one.
function lineChart(width, { x: xs, series, height = 280, label = "timestep", unit = "", log = false, description, chosen = null, onpick = null, format = figures }) {
  const shown = finite(series.flatMap((one) => one.values));
  if (shown.length === 0) return html("p", { class: "caption" }, "Nothing to draw.");
  const logarithmic = log && Math.min(...shown) > 0;
  const domain = padded(shown, logarithmic);
  const yTicks = ticks(...domain, 5, logarithmic);
  const area = plotArea(width, height, 14 + LABEL_WIDTH * Math.max(...yTicks.map((value) => figures(value).length)));
  const x = scale([Math.min(...xs), Math.max(...xs)], [area.left + 6, area.right - 6]);
  const y = scale(domain, [area.bottom, area.top], logarithmic);
  const across = xs.length === 1 ? xs : ticks(Math.min(...xs), Math.max(...xs), Math.max(2, Math.min(8, Math.floor(width / 70))));
  const marks = svg("g", null);
  for (const one of series) {
    const points = xs.map((at, index) => [x(at), one.values[index]]).filter(([, value]) => value !== null).map(([at, value]) => [at, y(value)]);
    if (one.line !== false) marks.append(svg("polyline", { class: `line ${one.colour} ${one.dashed ? "dashed" : ""}`, points: points.map((point) => point.join()).join(" ") }));
    const markers = one.marker ?? (points.length === 1 || one.line === false ? "solid" : null);
    if (markers) marks.append(...points.map(([cx, cy]) => svg("circle", { cx, cy, r: one.radius ?? 3.5, class: `${one.colour} ${markers}`, "stroke-width": 1.5 })));
  }
  const cursor = svg("path", { class: "cursor" });
  const mark = chosen === null ? null : svg("path", { class: "mark", d: `M${x(xs[chosen])} ${area.top}V${area.bottom}` });
  const nearest = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    return xs.reduce((best, value, index) => (Math.abs(x(value) - at) < Math.abs(x(xs[best]) - at) ? index : best), 0);
  };
  const chart = frame(area, description, axisY(area, y, yTicks), axisX(area, x, across, label), mark, cursor, marks);
  chart.addEventListener("pointermove", (event) => {
    const index = nearest(event);
    cursor.setAttribute("d", `M${x(xs[index])} ${area.top}V${area.bottom}`);
    showTip(event, [`${label.split(" (")[0]} ${figures(xs[index])}`, ...series.map((one) => `${one.name}: ${one.values[index] === null ? "–" : format(one.values[index]) + unit}`)]);
  });
  chart.addEventListener("pointerleave", () => {
    cursor.removeAttribute("d");
    hideTip();
  });
  if (onpick) chart.addEventListener("click", (event) => onpick(nearest(event)));
  return chart;
}

// rows: [{name, before, after}], the change drawn as a line between two ends.
function changeChart(width, { rows, label, description }) {
  const values = rows.flatMap((row) => [row.before, row.after]);
  const log = Math.min(...values) > 0;
  const wide = width > 560;
  const area = plotArea(width, 56 + 18 * rows.length, wide ? 250 : 8);
  const x = scale(padded(values, log), [area.left + 8, area.right - 8], log);
  const lines = rows.map((row, index) => {
    const at = area.top + 14 + 18 * index;
    const colour = row.after < row.before ? "s1" : "s2";
    const line = svg("g", null,
      svg("path", { class: "grid", d: `M${area.left} ${at}H${area.right}` }),
      wide ? svg("text", { class: "name", x: area.left - 10, y: at + 4, "text-anchor": "end" }, short(row.name, 38)) : null,
      svg("path", { class: `line ${colour}`, d: `M${x(row.before)} ${at}H${x(row.after)}` }),
      svg("circle", { cx: x(row.before), cy: at, r: 4, class: "s0 hollow", "stroke-width": 1.5 }),
      svg("circle", { cx: x(row.after), cy: at, r: 4.5, class: `${colour} solid` }));
    line.addEventListener("pointermove", (event) => showTip(event, [row.name, `before ${figures(row.before, 3)}`, `after ${figures(row.after, 3)}`]));
    line.addEventListener("pointerleave", hideTip);
    return line;
  });
  const across = ticks(...padded(values, log), Math.max(2, Math.floor((area.right - area.left) / 110)), log);
  return frame(area, description, ...lines, axisX(area, x, across, label, (value) => figures(value, 2)));
}

// rows: [{name, ratio, low, high, colour, note}], with the baseline's 1 as a line.
function ratioChart(width, { rows, label, description }) {
  const wide = width > 560;
  const area = plotArea(width, 50 + (wide ? 26 : 42) * rows.length, wide ? 230 : 8);
  const most = Math.max(1, ...rows.map((row) => row.high));
  const x = scale([0, most * 1.22], [area.left, area.right]);
  const bars = rows.map((row, index) => {
    const at = area.top + (wide ? 6 + 26 * index : 22 + 42 * index);
    return svg("g", null,
      svg("text", { class: "name", x: wide ? area.left - 10 : area.left, y: wide ? at + 13 : at - 6, "text-anchor": wide ? "end" : "start" }, short(row.name, 36)),
      svg("rect", { x: area.left, y: at, width: Math.max(1, x(row.ratio) - area.left), height: 17, class: `bar ${row.colour}` }),
      svg("path", { class: "mark", d: `M${x(row.low)} ${at + 8.5}H${x(row.high)}M${x(row.low)} ${at + 5}v7M${x(row.high)} ${at + 5}v7` }),
      svg("text", { x: Math.max(x(row.high), x(1)) + 8, y: at + 13 }, row.note));
  });
  const one = svg("path", { class: "cursor", d: `M${x(1)} ${area.top}V${area.bottom}` });
  return frame(area, description, ...bars, one, axisX(area, x, ticks(0, most * 1.22, 6), label));
}

// points: [{name, x, y, colour, lines}]
function cloudChart(width, { points, height = 300, xLabel, yLabel, description }) {
  const xDomain = [0, Math.max(...points.map((point) => point.x), 0.01) * 1.04];
  const yDomain = padded([...points.map((point) => point.y), 1], false);
  const yTicks = ticks(...yDomain, 5);
  const area = plotArea(width, height, 52);
  const [x, y] = [scale(xDomain, [area.left + 4, area.right - 6]), scale(yDomain, [area.bottom, area.top])];
  const marks = points.map((point) => {
    const mark = svg("circle", { cx: x(point.x), cy: y(point.y), r: 5, class: `${point.colour} solid`, "fill-opacity": 0.55 });
    mark.addEventListener("pointermove", (event) => showTip(event, [point.name, ...point.lines]));
    mark.addEventListener("pointerleave", hideTip);
    return mark;
  });
  const unity = svg("path", { class: "cursor", d: `M${area.left} ${y(1)}H${area.right}` });
  const title = html("p", { class: "unit" }, yLabel);
  const chart = frame(area, description, axisY(area, y, yTicks), unity, axisX(area, x, ticks(...xDomain, Math.max(2, Math.floor(width / 110))), xLabel, percent), ...marks);
  return html("div", null, title, chart);
}
