// Pairs of pictures under one dividing line: left of it the float model's, right of it the quantized one's.

function drawPictures(host) {
  const { expected, quantized, psnr_db: psnr, consistency_db: consistency, labels, prompts } = data.pictures;
  const subject = (index) => (prompts ? prompts[index] : labels ? `class ${labels[index]}` : null);
  const grid = html("div", { class: expected ? "pairs" : "pairs single" });
  if (quantized.length <= 4) grid.style.setProperty("--cell", "14rem");
  quantized.forEach((address, index) => {
    const name = [`picture ${index + 1}`, subject(index)].filter(Boolean).join(", ");
    const images = expected ? [html("img", { src: expected[index], alt: `${name}, float`, draggable: "false" })] : [];
    images.push(html("img", { src: address, alt: `${name}, quantized`, draggable: "false" }));
    const between = consistency ? `${consistency[index].toFixed(1)} dB between frames` : null;
    const words = [subject(index), psnr ? `${psnr[index].toFixed(1)} dB` : null, between].filter(Boolean).join(" · ");
    grid.append(html("figure", { class: "pair" }, html("div", { class: "frame" }, ...images), html("figcaption", null, words)));
  });
  host.append(grid);
  if (!expected) return;

  const slider = html("input", { type: "range", min: 0, max: 100, value: 50, step: 1, id: "cut", "aria-label": "Dividing line: everything quantized at 0, everything float at 100" });
  const cut = (percent) => {
    slider.value = percent;
    slider.setAttribute("aria-valuetext", `${Math.round(percent)} % float`);
    grid.style.setProperty("--cut", `${percent}%`);
  };
  slider.addEventListener("input", () => cut(Number(slider.value)));
  const drag = (event) => {
    if (event.type !== "pointerdown" && event.buttons === 0) return;
    const box = event.currentTarget.getBoundingClientRect();
    cut(Math.min(100, Math.max(0, ((event.clientX - box.left) / box.width) * 100)));
  };
  for (const one of grid.querySelectorAll(".frame")) {
    one.addEventListener("pointerdown", drag);
    one.addEventListener("pointermove", drag);
  }
  const difference = html("input", { type: "checkbox", id: "difference" });
  difference.addEventListener("change", () => {
    grid.classList.toggle("difference", difference.checked);
    slider.disabled = difference.checked;
  });
  host.prepend(html("div", { class: "controls" },
    html("div", { class: "slider" }, html("span", null, "quantized"), slider, html("span", null, "float")),
    html("label", null, difference, "difference × 10")));
  cut(50);
}
