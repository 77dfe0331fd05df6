// The samplers: how the run goes. A loop of what the clip is becoming; loss and gradient of each step, and how far a step
// moves the latent, against what is healthy; with a plain word where it is not.
import { app } from "../../scripts/app.js";
import { addView, element, forNodes, whileRunning, widgetOf } from "./weft/player.js";

const HEALTHY = [0.0005, 0.05]; // share of the latent that a step of guidance should move
const LOW = 2; // guidance by text at which words still do little; distilled models want 1
const LINES = [["loss", "#6cf"], ["gradient", "#fc6"], ["relative_step", "#8f8"]];
const HEIGHT = 130, LEFT = 46, BOTTOM = 16; // pixels, of it all and for the axes
const FPS = 8;

class RunView {
  constructor(node) {
    Object.assign(this, { node, records: [], done: 0, total: 0, loop: [], frame: 0 });
    this.canvas = element("canvas", { style: { width: "100%", flex: "1 1 0", minHeight: "0", display: "block" } });
    this.words = element("div", { style: { font: "12px sans-serif", padding: "2px 0" } });
    const style = { display: "flex", flexDirection: "column", height: "100%", minHeight: `${HEIGHT}px` };
    this.root = element("div", { style, className: "weft-view" }, this.canvas, this.words);
    addView(node, this.root, HEIGHT);
    whileRunning(node, (told) => this.progress(told), () => this.rest());
    this.observer = new ResizeObserver(() => this.paint());
    this.observer.observe(this.canvas);
    const removed = node.onRemoved;
    node.onRemoved = (...given) => (this.observer.disconnect(), removed?.apply(node, given));
  }

  progress({ done, total, record, frames }) {
    if (done <= 1) Object.assign(this, { records: [], cfg: widgetOf(this.node, "cfg").value });
    Object.assign(this, { done, total });
    if (record) this.records.push(record);
    if (frames?.length) {
      this.loop = frames.map((src) => Object.assign(new Image(), { src }));
      this.playing ??= setInterval(() => (this.frame++, this.paint()), 1000 / FPS);
    }
    this.paint();
  }

  /** The run is over: what comes of it is shown elsewhere. */
  rest() {
    clearInterval(this.playing);
    Object.assign(this, { playing: undefined, loop: [] });
    this.paint();
  }

  told(_, { records = [], steps = 0 }) {
    this.cfg ??= widgetOf(this.node, "cfg").value; // of a run that was not seen: what the workflow says
    Object.assign(this, { records, done: steps, total: steps });
    this.paint();
  }

  say() {
    if (!this.total) return "No run seen here yet.";
    const ended = this.done >= this.total, low = ended && this.cfg < LOW;
    const why = low ? ` Does too little change? cfg is ${+this.cfg.toPrecision(3)}, which is low.` : "";
    return `Step ${this.done} of ${this.total}. ${this.guidance(ended)}${why}`;
  }

  guidance(ended) {
    const moved = this.records.map((r) => r.relative_step).filter(Number.isFinite);
    if (!moved.length) return "No guidance to watch.";
    const mean = moved.reduce((a, b) => a + b) / moved.length, told = `Guidance moves ${(100 * mean).toPrecision(2)} % of the latent a step`;
    if (!ended) return `${told} so far.`; // the first steps move it most
    if (mean < HEALTHY[0]) return `${told}: too weak to keep the source. Raise strength.`;
    if (mean > HEALTHY[1]) return `${told}: so strong that the edit may break. Lower strength.`;
    return `${told}: healthy (0.05 to 5 %).`;
  }

  paint() {
    const { canvas } = this, context = canvas.getContext("2d");
    const width = Math.max(1, canvas.clientWidth), height = Math.max(1, canvas.clientHeight);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.clearRect(0, 0, width, height);
    this.words.textContent = this.say();
    context.fillStyle = "#555";
    context.fillRect(0, height - 3, width, 3);
    context.fillStyle = "#6af";
    context.fillRect(0, height - 3, this.total ? (width * this.done) / this.total : 0, 3);
    const free = this.picture(context, width, height - 4);
    const curves = LINES.filter(([name]) => this.values(name).length);
    curves.forEach(([name, color], i) => {
      const high = (height - 4 - BOTTOM) / curves.length;
      this.curve(context, name, color, { left: LEFT, top: i * high + 2, width: free - LEFT - 4, height: high - 5 });
    });
    if (curves.length) this.steps(context, { left: LEFT, width: free - LEFT - 4 }, height - 4 - BOTTOM);
  }

  /** The loop, at the right; returns the width that is left. */
  picture(context, width, height) {
    const image = this.loop[this.frame % this.loop.length];
    if (!image?.naturalWidth) return width;
    const scale = Math.min(height / image.naturalHeight, width / 2 / image.naturalWidth);
    const wide = image.naturalWidth * scale;
    context.imageSmoothingEnabled = scale < 1;
    context.drawImage(image, width - wide, 0, wide, image.naturalHeight * scale);
    return width - wide - 4;
  }

  values(name) {
    return this.records.map((r) => r[name]).filter(Number.isFinite);
  }

  /** One curve with its axis, on a logarithmic scale where all is positive. */
  curve(context, name, color, { left, top, width, height }) {
    const values = this.values(name), scale = values.every((v) => v > 0) ? Math.log : (v) => v;
    const [least, most] = [Math.min(...values), Math.max(...values)], low = scale(least), range = scale(most) - low || 1;
    Object.assign(context, { strokeStyle: "#777", fillStyle: "#aaa", lineWidth: 1, font: "10px sans-serif", textAlign: "right" });
    context.strokeRect(left + 0.5, top + 0.5, width, height);
    context.fillText(+most.toPrecision(4), left - 3, top + 9);
    if (most > least) context.fillText(+least.toPrecision(4), left - 3, top + height);
    context.beginPath();
    values.forEach((v, i) => context.lineTo(left + this.share(i) * width, top + height - 3 - ((scale(v) - low) / range) * (height - 6)));
    Object.assign(context, { strokeStyle: color, fillStyle: color, lineWidth: 1.5 });
    context.stroke();
    // At the right, as most curves fall.
    context.fillText(`${name.replace("_", " ")} ${+values.at(-1).toPrecision(4)}`, left + width - 4, top + 11);
  }

  share(i) {
    return (i + 0.5) / Math.max(this.total, this.records.length);
  }

  /** The axis of all curves: steps. */
  steps(context, { left, width }, top) {
    const count = Math.max(this.total, this.records.length);
    Object.assign(context, { fillStyle: "#aaa", font: "10px sans-serif", textAlign: "center" });
    for (const i of new Set([0, Math.floor((count - 1) / 2), count - 1])) context.fillText(i + 1, left + this.share(i) * width, top + 11);
    context.textAlign = "right";
    context.fillText("step", left - 3, top + 11);
  }
}

for (const [name, type] of [["run", "WeftEditSampler"], ["coupled", "WeftCoupledEdit"]])
  forNodes(app, name, type, (node) => new RunView(node));
