// A map of rows (layers) by columns (timesteps) on a canvas: colours for values, one cell chosen by pointer or arrow keys.

// From no error to the most, on light and on dark paper: what is conspicuous is what is wrong.
const ERROR_COLOURS = {
  light: [[240, 243, 247], [250, 214, 160], [240, 138, 76], [190, 44, 52], [92, 10, 44]],
  dark: [[30, 34, 40], [92, 50, 34], [176, 84, 32], [240, 150, 60], [255, 232, 178]],
};
const SIGNED_COLOURS = {
  light: [[38, 102, 172], [146, 190, 224], [244, 245, 247], [244, 176, 120], [190, 84, 14]],
  dark: [[122, 184, 240], [50, 98, 146], [34, 38, 44], [150, 84, 32], [255, 178, 104]],
};

function colourOf(stops, share) {
  const place = Math.min(1, Math.max(0, share)) * (stops.length - 1);
  const index = Math.min(stops.length - 2, Math.floor(place));
  const mixed = stops[index].map((channel, at) => Math.round(channel + (stops[index + 1][at] - channel) * (place - index)));
  return `rgb(${mixed.join()})`;
}

function quantile(sorted, share) {
  return sorted[Math.round(share * (sorted.length - 1))];
}

// A measure's colours: {colour(value), gradient, low, high}. SNRs run from the best to the worst but for the outermost hundredth of cells.
function errorColours(values) {
  const sorted = finite(values).sort((a, b) => a - b);
  const [worst, best] = [quantile(sorted, 0.01), quantile(sorted, 0.99)];
  const stops = ERROR_COLOURS[darkScheme.matches ? "dark" : "light"];
  return { colour: (value) => colourOf(stops, (best - value) / (best - worst || 1)), gradient: gradient(stops), low: `${decibels(best)} or more`, high: `${decibels(worst)} or less` };
}

function shareColours(values) {
  const sorted = finite(values).sort((a, b) => a - b);
  const most = quantile(sorted, 0.99) || sorted[sorted.length - 1] || 1;
  const stops = ERROR_COLOURS[darkScheme.matches ? "dark" : "light"];
  // By the square root: a share of a thousandth should be seen beside one of a tenth.
  return { colour: (value) => colourOf(stops, Math.sqrt(Math.min(1, value / most))), gradient: gradient(stops), low: "0 %", high: `${percent(most)} or more` };
}

function signedColours(values) {
  const limit = Math.min(2, Math.max(0.5, ...finite(values).map(Math.abs))); // octaves; beyond a factor of 4 all are drawn alike
  const stops = SIGNED_COLOURS[darkScheme.matches ? "dark" : "light"];
  return { colour: (value) => colourOf(stops, 0.5 + value / limit / 2), gradient: gradient(stops), low: `× ${figures(2 ** -limit, 2)}`, high: `× ${figures(2 ** limit, 2)}` };
}

const gradient = (stops) => `linear-gradient(90deg, ${stops.map((stop) => `rgb(${stop.join()})`).join()})`;

// `values(row, column)` → number or null. Returns the drawn width's canvas; `onpick(row, column)` is called with what was chosen.
function heatMap(width, { names, columns, values, colour, chosen, describe, onpick }) {
  const gutter = Math.min(270, Math.round(width * 0.36));
  const foot = 34;
  const rowHeight = Math.max(5, Math.min(16, 1100 / names.length));
  const cell = (width - gutter) / columns.length;
  const height = Math.round(rowHeight * names.length) + foot;
  const canvas = html("canvas", { tabindex: 0, role: "application", "aria-label": `Map of ${names.length} layers by ${columns.length} timesteps; the arrow keys choose a cell`, "aria-describedby": "chosen" });
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  paint(canvas.getContext("2d"));

  function paint(pen) {
    const style = getComputedStyle(document.documentElement);
    const [ink, muted, paper] = ["--ink", "--muted", "--paper"].map((name) => style.getPropertyValue(name));
    const font = (size, weight = "") => `${weight} ${size}px ${getComputedStyle(document.body).fontFamily}`;
    pen.scale(ratio, ratio);
    names.forEach((_, row) => columns.forEach((__, column) => {
      const value = values(row, column);
      if (value === null || value === undefined) return;
      pen.fillStyle = colour(value);
      // Whole device pixels: seams between cells would look like data.
      const [left, right] = [column, column + 1].map((at) => Math.round((gutter + at * cell) * ratio) / ratio);
      const [top, bottom] = [row, row + 1].map((at) => Math.round(at * rowHeight * ratio) / ratio);
      pen.fillRect(left, top, right - left, bottom - top);
    }));
    pen.textBaseline = "middle";
    const size = Math.min(11, rowHeight + 0.5);
    const apart = Math.ceil(8 / rowHeight);
    pen.textAlign = "right";
    names.forEach((name, row) => {
      if (row % apart && row !== chosen.row) return;
      pen.font = font(size, row === chosen.row ? "600" : "");
      pen.fillStyle = row === chosen.row ? ink : muted;
      pen.fillText(fitting(pen, name, gutter - 10), gutter - 8, (row + 0.5) * rowHeight);
    });
    const bottom = names.length * rowHeight;
    pen.textAlign = "center";
    const every = Math.ceil(34 / cell);
    columns.forEach((column, index) => {
      if (index % every && index !== chosen.column) return;
      if (Math.abs(index - chosen.column) < every && index !== chosen.column) return;
      pen.font = font(11, index === chosen.column ? "600" : "");
      pen.fillStyle = index === chosen.column ? ink : muted;
      pen.fillText(figures(column), Math.min(width - 12, gutter + (index + 0.5) * cell), bottom + 11);
    });
    pen.font = font(11);
    pen.fillStyle = muted;
    pen.fillText("timestep", gutter + (width - gutter) / 2, bottom + 26);
    pen.lineWidth = 4;
    pen.strokeStyle = paper;
    outline(pen);
    pen.lineWidth = 2;
    pen.strokeStyle = ink;
    outline(pen);
  }

  function outline(pen) {
    pen.strokeRect(gutter + chosen.column * cell - 0.5, chosen.row * rowHeight - 0.5, cell + 1, rowHeight + 1);
  }

  function at(event) {
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * height / rowHeight);
    const column = Math.floor((((event.clientX - box.left) / box.width) * width - gutter) / cell);
    if (row < 0 || row >= names.length || column >= columns.length) return null;
    return { row, column: Math.max(0, column), label: column < 0 };
  }

  canvas.addEventListener("click", (event) => {
    const found = at(event);
    if (found) onpick(found.row, found.label ? chosen.column : found.column);
  });
  canvas.addEventListener("pointermove", (event) => {
    const found = at(event);
    if (!found) hideTip();
    else showTip(event, found.label ? [names[found.row]] : [names[found.row], `timestep ${figures(columns[found.column])}`, describe(values(found.row, found.column))]);
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const within = (value, count) => Math.min(count - 1, Math.max(0, value));
    onpick(within(chosen.row + step[0], names.length), within(chosen.column + step[1], columns.length));
  });
  return canvas;
}

function fitting(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let kept = text;
  while (kept.length > 3 && pen.measureText(`…${kept}`).width > width) kept = kept.slice(1);
  return `…${kept}`;
}
