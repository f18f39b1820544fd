// Which chart goes where, and the links at the top.

const BUNDLE_COLOURS = ["s2", "s3", "s4", "s5"];

function drawSnr(host) {
  let bundles = 0;
  const series = data.snr.map((one) => {
    if (one.role === "before") return { name: one.name, values: one.snr_db, colour: "s0", dashed: true };
    if (one.role === "reference") return { name: one.name, values: one.snr_db, colour: "s1" };
    // Markers on the line they should lie on, each a ring around the one before.
    const ring = { name: one.name, values: one.snr_db, colour: BUNDLE_COLOURS[bundles % BUNDLE_COLOURS.length], marker: "open", line: false, radius: 3.5 + 2.2 * (bundles % 3) };
    bundles += 1;
    return ring;
  });
  const chart = html("div", { class: "chart" });
  host.append(legend(series), html("p", { class: "unit" }, "SNR [dB]"), chart);
  responsive(chart, (width) => lineChart(width, { x: data.snr[0].timesteps, series, label: "timestep (sampling runs from right to left)", unit: " dB", format: (value) => value.toFixed(2), description: "SNR against the float model over timesteps" }));
}

function drawFinal(host) {
  const at = (t, key) => data.final_error.steps.find((step) => step.timesteps.includes(t))?.[key] ?? null;
  const series = [
    { name: "only this step quantized", values: data.timesteps.map((t) => at(t, "only_db")), colour: "s2", marker: "solid", radius: 2.5 },
    { name: "all but this step quantized", values: data.timesteps.map((t) => at(t, "without_db")), colour: "s1", marker: "open", line: false },
    { name: "every step quantized", values: data.timesteps.map(() => data.final_error.all_db), colour: "s0", dashed: true },
  ];
  const chart = html("div", { class: "chart" });
  host.append(legend(series), html("p", { class: "unit" }, "SNR of the final sample [dB]"), chart);
  responsive(chart, (width) => lineChart(width, { x: data.timesteps, series, label: "timestep (sampling runs from right to left)", unit: " dB", format: (value) => value.toFixed(2), description: "SNR of the final sample by the step that is quantized" }));
}

function drawDistillation(host) {
  const rows = data.distillation.map((row) => ({ name: row.block, before: row.before, after: row.after }));
  const chart = html("div", { class: "chart" });
  host.append(legend([{ name: "before", colour: "s0", marker: "hollow" }, { name: "after", colour: "s1", marker: "solid" }, { name: "after, not lower", colour: "s2", marker: "solid" }]), chart);
  responsive(chart, (width) => changeChart(width, { rows, label: "held-out loss, relative to the block’s output", description: "Held-out loss of every block before and after its training" }));
}

function drawDilation(host) {
  const points = data.dilation.map((row) => ({
    name: row.quantizer, x: row.unsaturated_share, y: row.range_ratio, colour: row.dilated_share ? "s1" : "s0",
    lines: [`rule: ${row.rule}`, `${Math.round(100 * row.unsaturated_share)} % of channels unsaturated, ${Math.round(100 * row.dilated_share)} % dilated`, `range ÷ plain range: ${figures(row.range_ratio, 4)}`, `output error ÷ without: ${figures(row.error_ratio, 4)}`],
  }));
  const chart = html("div", { class: "chart" });
  host.append(legend([{ name: "dilated", colour: "s1", marker: "solid" }, { name: "not dilated", colour: "s0", marker: "solid" }]), chart);
  responsive(chart, (width) => cloudChart(width, { points, xLabel: "unsaturated input channels", yLabel: "activation range with dilation ÷ without, Δ′x ÷ Δx (below 1: a finer scale)", description: "Range of every dilated activation against its share of unsaturated channels" }));
}

function drawLatency(host) {
  const { rows, baseline } = data.latency;
  for (const batch of new Set(rows.map((row) => row.batch))) {
    const shown = rows.filter((row) => row.batch === batch).map((row) => ({
      name: row.contender, ratio: row.ratio, low: row.ratio_low, high: row.ratio_high, note: `${figures(row.median_ms, 3)} ms`,
      colour: row.contender === baseline || row.within_noise ? "s0" : row.ratio < 1 ? "s1" : "s2",
    }));
    const chart = html("div", { class: "chart" });
    host.append(html("p", { class: "caption" }, `Batch ${batch}`), chart);
    responsive(chart, (width) => ratioChart(width, { rows: shown, label: "time relative to the baseline (left is faster)", description: `Time relative to ${baseline}, batch ${batch}` }));
  }
}

const PARTS = { pictures: drawPictures, snr: drawSnr, final: drawFinal, layers: drawLayers, distillation: drawDistillation, dilation: drawDilation, latency: drawLatency };

for (const [name, draw] of Object.entries(PARTS)) {
  const host = document.querySelector(`[data-part="${name}"]`);
  if (host) draw(host);
}

for (const section of document.querySelectorAll("section[id]")) {
  document.querySelector("nav").append(html("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
}
