// Pairs of pictures under one dividing line: left of it the float model's, right of it the quantized one's.

function drawPictures(host) {
  const { expected, labels, prompts, others } = data.pictures;
  const subject = (index) => (prompts ? prompts[index] : labels ? `class ${labels[index]}` : null);
  const pair = ({ quantized, psnr_db: psnr, consistency_db: consistency }, index) => {
    const name = [`picture ${index + 1}`, subject(index)].filter(Boolean).join(", ");
    const images = expected ? [html("img", { src: expected[index], alt: `${name}, float`, draggable: "false" })] : [];
    images.push(html("img", { src: quantized[index], alt: `${name}, quantized`, draggable: "false" }));
    const between = consistency ? `${consistency[index].toFixed(1)} dB between frames` : null;
    const words = [subject(index), psnr ? `${psnr[index].toFixed(1)} dB` : null, between].filter(Boolean).join(" · ");
    return html("figure", { class: "pair" }, html("div", { class: "frame" }, ...images), html("figcaption", null, words));
  };
  const grids = [];
  for (const row of [data.pictures, ...others]) {
    const grid = html("div", { class: expected ? "pairs" : "pairs single" }, ...row.quantized.map((_, index) => pair(row, index)));
    if (row.quantized.length <= 4) grid.style.setProperty("--cell", "14rem");
    if (others.length) {
      const mean = row.psnr_db ? ` · ${(row.psnr_db.reduce((sum, value) => sum + value, 0) / row.psnr_db.length).toFixed(1)} dB` : "";
      host.append(html("h3", null, `${row.artefact} · ${row.bits}${mean}`));
    }
    host.append(grid);
    grids.push(grid);
  }
  if (!expected) return;

  const slider = html("input", { type: "range", min: 0, max: 100, value: 50, step: 1, id: "cut", "aria-label": "Dividing line: everything quantized at 0, everything float at 100" });
  const cut = (percent) => {
    slider.value = percent;
    slider.setAttribute("aria-valuetext", `${Math.round(percent)} % float`);
    for (const grid of grids) grid.style.setProperty("--cut", `${percent}%`);
  };
  slider.addEventListener("input", () => cut(Number(slider.value)));
  const drag = (event) => {
    if (event.type !== "pointerdown" && event.buttons === 0) return;
    const box = event.currentTarget.getBoundingClientRect();
    cut(Math.min(100, Math.max(0, ((event.clientX - box.left) / box.width) * 100)));
  };
  for (const one of host.querySelectorAll(".frame")) {
    one.addEventListener("pointerdown", drag);
    one.addEventListener("pointermove", drag);
  }
  const difference = html("input", { type: "checkbox", id: "difference" });
  difference.addEventListener("change", () => {
    for (const grid of grids) grid.classList.toggle("difference", difference.checked);
    slider.disabled = difference.checked;
  });
  host.prepend(html("div", { class: "controls" },
    html("div", { class: "slider" }, html("span", null, "quantized"), slider, html("span", null, "float")),
    html("label", null, difference, "difference × 10")));
  cut(50);
}
