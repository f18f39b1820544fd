// Draws one picture with a bundle alone, in JavaScript with onnxruntime-node: node draw.mjs BUNDLE OUT.pgm [NOISE]
// For networks that predict noise on a linear schedule, such as builtin:fashion-mnist-unet. NOISE is a file of float32, else random.
import { readFileSync, writeFileSync } from "node:fs";
import { InferenceSession, Tensor } from "onnxruntime-node";

const [bundle, output, noiseFile] = process.argv.slice(2);
if (!output) {
  console.error("node draw.mjs BUNDLE OUT.pgm [NOISE]");
  process.exit(2);
}
const { timesteps, scheduler, details } = JSON.parse(readFileSync(`${bundle}/manifest.json`, "utf8"));
const { beta_start: from, beta_end: to, num_train_timesteps: trained } = scheduler.config;
const alphas = [];
for (let i = 0; i < trained; i++) {
  alphas.push((i ? alphas[i - 1] : 1) * (1 - (from + ((to - from) * i) / (trained - 1))));
}

const session = await InferenceSession.create(`${bundle}/model.onnx`);
const shape = [1, ...details.sample_shape];
const size = shape.reduce((a, b) => a * b);
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
let x = Float32Array.from({ length: size }, normal);
if (noiseFile) {
  x = new Float32Array(new Uint8Array(readFileSync(noiseFile)).buffer).slice(0, size);
}

for (let step = timesteps.length - 1; step >= 0; step--) { // DDIM, deterministic
  const a = alphas[timesteps[step]];
  const next = step ? alphas[timesteps[step - 1]] : 1;
  const feeds = {
    sample: new Tensor("float32", x, shape),
    timestep: new Tensor("float32", Float32Array.of(timesteps[step]), [1]),
  };
  const noise = (await session.run(feeds))[details.output].data;
  x = x.map((value, i) => {
    const picture = Math.min(1, Math.max(-1, (value - Math.sqrt(1 - a) * noise[i]) / Math.sqrt(a)));
    return Math.sqrt(next) * picture + Math.sqrt(1 - next) * noise[i];
  });
}
const [height, width] = shape.slice(2);
const pixels = x.slice(0, height * width).map((value) => Math.round(Math.min(1, Math.max(0, (value + 1) / 2)) * 255));
writeFileSync(output, Buffer.concat([Buffer.from(`P5\n${width} ${height}\n255\n`), Buffer.from(Uint8Array.from(pixels))]));
