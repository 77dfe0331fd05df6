// The samplers: how the run goes. Loss and gradient of each step, and how far a step moves the latent, against what is
// healthy; with a plain word where it is not.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addView, element, forNodes } from "./weft/player.js";

const HEALTHY = [0.0005, 0.05]; // share of the latent that a step of guidance should move
const LINES = [["loss", "#6cf"], ["gradient", "#fc6"], ["relative_step", "#8f8"]];
const HEIGHT = 130;

class RunView {
  constructor(node) {
    Object.assign(this, { node, records: [], done: 0, total: 0 });
    this.canvas = element("canvas", { style: { width: "100%", flex: "1 1 0", minHeight: "0", display: "block" } });
    this.words = element("div", { style: { font: "12px sans-serif", padding: "2px 0" }, textContent: "Not run yet." });
    const style = { display: "flex", flexDirection: "column", height: "100%", minHeight: `${HEIGHT}px` };
    this.root = element("div", { style, className: "weft-view" }, this.canvas, this.words);
    addView(node, this.root, HEIGHT);
    const listen = ({ detail }) => String(detail.node) === String(node.id) && this.progress(detail);
    api.addEventListener("weft.run", listen);
    this.observer = new ResizeObserver(() => this.paint());
    this.observer.observe(this.canvas);
    const removed = node.onRemoved;
    node.onRemoved = (...given) => {
      api.removeEventListener("weft.run", listen);
      this.observer.disconnect();
      removed?.apply(node, given);
    };
  }

  progress({ done, total, record }) {
    if (done <= 1) this.records = [];
    Object.assign(this, { done, total });
    if (record) this.records.push(record);
    this.paint();
  }

  told(_, { records = [], steps = 0 }) {
    Object.assign(this, { records, done: steps, total: steps });
    this.paint();
  }

  say() {
    const steps = this.total ? `Step ${this.done} of ${this.total}. ` : "";
    const moved = this.records.map((r) => r.relative_step).filter(Number.isFinite);
    if (!moved.length) return `${steps}${this.total ? "No guidance to watch." : "Not run yet."}`;
    const mean = moved.reduce((a, b) => a + b) / moved.length, share = `${(100 * mean).toPrecision(2)} % of the latent a step`;
    if (mean < HEALTHY[0]) return `${steps}Guidance moves ${share}: too weak to keep the source. Raise strength.`;
    if (mean > HEALTHY[1]) return `${steps}Guidance moves ${share}: so strong that the edit may break. Lower strength.`;
    return `${steps}Guidance moves ${share}: healthy (0.05 to 5 %).`;
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
    LINES.forEach(([name, color], i) => this.line(context, name, color, i, width, height - 8));
  }

  /** One curve in a strip of its own, on a logarithmic scale where all is positive. */
  line(context, name, color, strip, width, height) {
    const values = this.records.map((r) => r[name]).filter(Number.isFinite);
    if (!values.length) return;
    const scale = values.every((v) => v > 0) ? Math.log : (v) => v;
    const [top, high] = [(strip * height) / LINES.length, height / LINES.length - 4];
    const low = Math.min(...values.map(scale)), range = Math.max(...values.map(scale)) - low || 1;
    context.beginPath();
    values.forEach((v, i) => {
      const x = (width * (i + 0.5)) / Math.max(this.total, values.length);
      context.lineTo(x, top + high - 2 - ((scale(v) - low) / range) * (high - 4));
    });
    Object.assign(context, { strokeStyle: color, fillStyle: color, lineWidth: 1.5, font: "11px sans-serif", textAlign: "left" });
    context.stroke();
    context.fillText(`${name.replace("_", " ")} ${values.at(-1).toPrecision(3)}`, 4, top + 11);
  }
}

for (const [name, type] of [["run", "WeftEditSampler"], ["coupled", "WeftCoupledEdit"]])
  forNodes(app, name, type, (node) => new RunView(node));
