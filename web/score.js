// Preview STR Score: a click asks the node for that point. The source, and the edit beside it, each with what the point
// is related to: at one attention resolution, and at one of the noise levels that the node has looked at.
import { app } from "../../scripts/app.js";
import { Player, button, canvasOf, element, forNodes, pixelsOf, runAlone, set, write } from "./weft/player.js";

class Score extends Player {
  constructor(node) {
    super(node, { height: 300, hint: "Run once, then click a point." });
    Object.assign(this, { levels: [], resolutions: [], resolution: 0, x: 0, y: 0 });
    this.canvas.title = "Click a point, or w a s d and x: what is it related to?";
    this.noise = element("input", { type: "range", min: 0, max: 0, value: 0, title: "Noise level ([ and ])" });
    this.number = element("span", { style: { font: "12px monospace" } });
    this.noise.addEventListener("input", () => this.turn(0));
    this.names = element("span", { style: { display: "flex", gap: "4px" } });
    this.tools.append("noise", this.noise, this.number, this.names);
  }

  get count() {
    return this.clips.source?.length ?? 0;
  }

  told(message, { levels, resolutions, first, steps, x, y }) {
    Object.assign(this, { levels, resolutions, steps, x, y, resolution: Math.min(this.resolution, resolutions.length - 1) });
    const kept = this.noise.max > 0 && +this.noise.max === levels.length - 1 ? this.noise.value : first;
    Object.assign(this.noise, { max: levels.length - 1, value: kept });
    const name = (level) => (level ? `1/${2 ** level}` : "full");
    const choose = (i) => () => ((this.resolution = i), this.turn(0));
    this.buttons = resolutions.map((level, i) => button(name(level), "Attention of this resolution (r: the next)", choose(i)));
    this.names.replaceChildren(...this.buttons);
    this.show({ source: message.weft_source, edit: message.weft_edit, heat: message.weft_heat });
    this.turn(0);
  }

  /** The noise level so many further. */
  turn(by) {
    this.noise.value = +this.noise.value + by;
    this.number.textContent = `${this.levels[this.noise.value]}/${this.steps}`;
    this.buttons?.forEach((made, i) => (made.style.fontWeight = i === this.resolution ? "bold" : "normal"));
    this.paint();
  }

  key(event) {
    const turned = { "[": -1, "]": 1 }[event.key];
    if (turned) this.turn(turned);
    else if (event.key === "r" && this.resolutions.length) {
      this.resolution = (this.resolution + 1) % this.resolutions.length;
      this.turn(0);
    } else return super.key(event);
    return true;
  }

  panels() {
    const shown = ["source", "edit"].map((name) => this.at(name)).filter(Boolean);
    return shown.map((image, i) => ({ image, box: this.box(image, i, shown.length) }));
  }

  pick(at, image) {
    set(this.node, "x", Math.round((100 * at[0]) / image.naturalWidth) / 100);
    set(this.node, "y", Math.round((100 * at[1]) / image.naturalHeight) / 100);
    runAlone(app, this.node);
  }

  draw(context) {
    const panels = this.panels(), heat = this.at("heat");
    panels.forEach(({ image, box }, i) => {
      context.filter = "grayscale(1) brightness(0.5)";
      this.put(context, image, box);
      context.filter = "none";
      Object.assign(context, { globalCompositeOperation: "lighter", imageSmoothingEnabled: true });
      if (heat) this.put(context, this.tile(heat, i, panels.length), box);
      Object.assign(context, { globalCompositeOperation: "source-over", imageSmoothingEnabled: false, fillStyle: "#fff" });
      const [x, y] = [box.x + this.x * box.w, box.y + this.y * box.h];
      context.fillRect(x - 6, y - 0.5, 13, 1);
      context.fillRect(x - 0.5, y - 6, 1, 13);
      if (panels.length > 1) write(context, ["source", "edit"][i], box.x + 4, box.y + 15, "#fff");
    });
  }

  /** The heat of a panel, from black over red to yellow. */
  tile(heat, panel, panels) {
    const wide = heat.naturalWidth / this.levels.length, high = heat.naturalHeight / (panels * this.resolutions.length);
    const pixels = pixelsOf(heat, this.noise.value * wide, (panel * this.resolutions.length + this.resolution) * high, wide, high);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const value = 2 * pixels.data[i];
      pixels.data.set([Math.min(value, 255), Math.max(0, value - 255), 0, 255], i);
    }
    return canvasOf(pixels);
  }
}

forNodes(app, "score", "WeftPreviewSTRScore", (node) => new Score(node));
