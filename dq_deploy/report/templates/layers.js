// The map of errors and scales, and beside it everything about the layer and timestep that are chosen.

const layerRows = data.layers.map((layer) => {
  const rounding = layer.quantizers.map((name) => data.activation_db[name]).filter(Boolean);
  const table = layer.quantizers.map((name) => data.tables[name]).find((one) => one && new Set(one.scales).size > 1) ?? data.tables[layer.quantizers[0]];
  return {
    layer,
    output: layer.output_db,
    // The worse of two operands.
    rounding: rounding.length ? data.timesteps.map((_, at) => finite(rounding.map((one) => one[at])).reduce((a, b) => Math.min(a, b), Infinity)).map((value) => (Number.isFinite(value) ? value : null)) : null,
    octaves: table ? octaves(table.scales) : null,
    clipped: data.clipped_known && layer.quantizers.length ? data.timesteps.map((_, at) => Math.max(...layer.quantizers.map((name) => data.clipped[name]?.[at] ?? 0))) : null,
  };
});

function octaves(scales) {
  const logs = scales.map(Math.log2);
  const middle = [...logs].sort((a, b) => a - b);
  const median = (middle[(middle.length - 1) >> 1] + middle[middle.length >> 1]) / 2;
  return logs.map((value) => value - median);
}

const MEASURES = [
  { id: "output", title: "error of the output", colours: errorColours, describe: (value) => `output: ${decibels(value)}`, worst: (values) => Math.min(...values) },
  { id: "rounding", title: "rounding of the input", colours: errorColours, describe: (value) => `input's rounding: ${decibels(value)}`, worst: (values) => Math.min(...values) },
  { id: "clipped", title: "clipped values", colours: shareColours, describe: (value) => `clipped on held-out samples: ${percent(value)}`, worst: (values) => -Math.max(...values) },
  { id: "octaves", title: "scale over its median", colours: signedColours, describe: (value) => (value === null ? "–" : `scale × ${figures(2 ** value, 3)} of its median`), worst: (values) => -(Math.max(...values) - Math.min(...values)) },
];

function drawLayers(host) {
  const measures = MEASURES.filter((measure) => layerRows.some((row) => row[measure.id]));
  if (!measures.length) {
    host.append(html("p", { class: "caption" }, "Nothing was measured of single layers, and there are no tables: activations stay float."));
    return;
  }
  const state = { measure: measures[0], order: layerRows.map((_, index) => index), layer: 0, timestep: 0 };
  [state.layer, state.timestep] = worstCell(measures[0]);

  const picker = html("select", { id: "layer", "aria-label": "Layer" }, ...data.layers.map((layer, index) => html("option", { value: index }, layer.name)));
  const steps = html("select", { id: "timestep", "aria-label": "Timestep" }, ...data.timesteps.map((t, index) => html("option", { value: index }, figures(t))));
  const order = html("select", { id: "order", "aria-label": "Order of the layers" }, html("option", { value: "network" }, "network order"), html("option", { value: "worst" }, "worst first"));
  const segments = html("fieldset", { class: "segments" }, html("legend", null, "What the colours show"), ...measures.map((measure, index) =>
    html("label", null, html("input", { type: "radio", name: "measure", value: measure.id, checked: index === 0, onchange: () => { state.measure = measure; arrange(); } }), measure.title)));
  const bar = html("div", { class: "scale" });
  const chart = html("div", { class: "chart" });
  const panel = html("aside", { class: "panel", id: "chosen", "aria-live": "polite" });
  host.append(
    html("div", { class: "controls" }, segments, html("label", null, "order", order)),
    html("div", { class: "map" }, html("div", null, bar, chart), html("div", null,
      html("div", { class: "controls" }, html("label", null, "layer", picker), html("label", null, "timestep", steps)), panel)));

  const draw = responsive(chart, (width) => {
    const { measure, order: shown } = state;
    const colours = measure.colours(shown.flatMap((index) => layerRows[index][measure.id] ?? []));
    bar.replaceChildren(colours.low, html("i", { style: `background:${colours.gradient}` }), colours.high);
    return heatMap(width, {
      names: shown.map((index) => data.layers[index].name),
      columns: data.timesteps,
      values: (row, column) => layerRows[shown[row]][measure.id]?.[column] ?? null,
      colour: colours.colour,
      describe: measure.describe,
      chosen: { row: shown.indexOf(state.layer), column: state.timestep },
      onpick: (row, column) => choose(shown[row], column),
    });
  });

  function choose(layer, timestep) {
    const focused = document.activeElement === chart.firstElementChild;
    [state.layer, state.timestep] = [layer, timestep];
    [picker.value, steps.value] = [layer, timestep];
    draw();
    if (focused) chart.firstElementChild.focus({ preventScroll: true });
    panel.replaceChildren(...about(layerRows[layer], timestep, (at) => choose(state.layer, at)));
  }

  function arrange() {
    const key = (index) => (layerRows[index][state.measure.id] ? state.measure.worst(finite(layerRows[index][state.measure.id])) : Infinity);
    state.order = layerRows.map((_, index) => index);
    if (order.value === "worst") state.order.sort((a, b) => key(a) - key(b));
    draw();
  }

  picker.addEventListener("change", () => choose(Number(picker.value), state.timestep));
  steps.addEventListener("change", () => choose(state.layer, Number(steps.value)));
  order.addEventListener("change", arrange);
  choose(state.layer, state.timestep);
}

function worstCell(measure) {
  let worst = [0, 0, Infinity];
  layerRows.forEach((row, index) => row[measure.id]?.forEach((value, at) => {
    if (value !== null && value < worst[2]) worst = [index, at, value];
  }));
  return worst;
}

function about({ layer, output, rounding, clipped }, at, onpick) {
  const total = [...data.layers, ...data.float_layers].reduce((sum, one) => sum + one.macs, 0);
  const activations = layer.activation_bits > 8 ? "float" : `${layer.activation_bits}-bit`;
  const weights = layer.weight_bits === null ? "none, a product of two activations" : `${layer.weight_bits}-bit`;
  const facts = [
    ["operation", layer.op], ["weights", weights], ["activations", activations], layer.format && ["products in", layer.format.toUpperCase()],
    ["multiply-accumulates", total ? `${((100 * layer.macs) / total).toFixed(2)} %` : "–"],
    ...Object.entries(layer.precisions).map(([engine, precision]) => [engine, layer.reasons[engine] ? `${precision}: ${layer.reasons[engine]}` : precision.toUpperCase()]),
    output && ["output against float", decibels(output[at])], rounding && ["rounding of its input", decibels(rounding[at])],
    clipped && ["clipped on held-out samples", percent(clipped[at])],
  ].filter(Boolean);
  const children = [html("h3", null, layer.name), html("dl", null, ...facts.flatMap(([name, value]) => [html("dt", null, name), html("dd", null, value)]))];
  const lines = [output && { name: "output", values: output, colour: "s2" }, rounding && { name: "rounding", values: rounding, colour: "s1" }].filter(Boolean);
  if (lines.length) {
    children.push(html("h4", null, "SNR over timesteps [dB]"), legend(lines), panelChart({ series: lines, unit: " dB", format: (value) => value.toFixed(1), description: `SNR of ${layer.name} over timesteps` }, at, onpick));
  }
  for (const name of layer.quantizers) children.push(...aboutQuantizer(name, at, onpick));
  return children;
}

function aboutQuantizer(name, at, onpick) {
  const table = data.tables[name];
  if (!table) return [];
  const dilation = data.dilation.find((row) => row.quantizer === name);
  const what = table.per_token ? "clipping ratio" : "scale";  // of a scale that each token computes, α is what a table has
  const facts = [[what, figures(table.scales[at], 5)], table.per_token ? ["scale", "of each token"] : ["zero-point", figures(table.zero_points[at])]];
  if (dilation) {
    facts.push(["dilation", dilation.dilated_share ? `${dilation.rule}, ${Math.round(100 * dilation.dilated_share)} % of channels` : "none pays"],
      ["unsaturated", `${Math.round(100 * dilation.unsaturated_share)} % of channels`], ["range, Δ′x ÷ Δx", figures(dilation.range_ratio, 4)]);
  }
  const moves = new Set(table.zero_points).size > 1;
  const rows = table.timesteps.map((t, index) => html("tr", { class: index === at ? "chosen" : null }, ...[figures(t), figures(table.scales[index], 5), figures(table.zero_points[index])].map((text) => html("td", { class: "number" }, text))));
  return [
    html("h4", null, name), html("dl", null, ...facts.flatMap(([term, value]) => [html("dt", null, term), html("dd", null, value)])),
    html("p", { class: "unit" }, what), panelChart({ series: [{ name: what, values: table.scales, colour: "s3", marker: "solid", radius: 2 }], log: true, description: `${what} of ${name} over timesteps` }, at, onpick),
    moves ? html("p", { class: "unit" }, "zero-point") : null,
    moves ? panelChart({ series: [{ name: "zero-point", values: table.zero_points, colour: "s4", marker: "solid", radius: 2 }], height: 120, description: `zero-point of ${name} over timesteps` }, at, onpick) : null,
    html("details", null, html("summary", null, "Its table"), html("div", { class: "rows" }, html("table", null,
      html("thead", null, html("tr", null, ...["timestep", what, "zero-point"].map((title) => html("th", { class: "number" }, title)))), html("tbody", null, ...rows)))),
  ].filter(Boolean);
}

function panelChart(options, at, onpick) {
  const host = html("div", { class: "chart" });
  // It has no width before it is on the page.
  requestAnimationFrame(() => responsive(host, (width) => lineChart(width, { x: data.timesteps, height: 150, chosen: at, onpick, ...options })));
  return host;
}
