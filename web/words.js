// Preview Words: FateZero's mask of the words, with the threshold live.
import { app } from "../../scripts/app.js";
import { Player, button, canvasOf, element, forNodes, pixelsOf, set, widgetOf } from "./weft/player.js";

class Words extends Player {
  constructor(node) {
    super(node, { height: 300, hint: "Run once to see where the words look." });
    Object.assign(this, { words: [], word: -1 });
    const threshold = widgetOf(node, "threshold");
    this.slider = element("input", { type: "range", min: 0, max: 1, step: 0.01, value: threshold.value, title: "Threshold (- and +)" });
    this.number = element("span", { style: { font: "12px monospace" }, textContent: threshold.value });
    this.slider.addEventListener("input", () => (set(node, "threshold", +this.slider.value), this.moved()));
    const called = threshold.callback;
    threshold.callback = (...given) => (called?.apply(threshold, given), this.moved());
    this.names = element("span", { style: { display: "flex", gap: "4px" } });
    this.tools.append("threshold", this.slider, this.number, this.names);
  }

  moved() {
    this.slider.value = this.number.textContent = widgetOf(this.node, "threshold").value;
    this.paint();
  }

  key(event) {
    const move = { "-": -0.01, "+": 0.01 }[event.key];
    if (!move) return super.key(event);
    set(this.node, "threshold", Math.round(100 * Math.max(0, Math.min(1, +this.slider.value + move))) / 100);
    return true;
  }

  told(message, { words }) {
    this.words = words;
    const count = message.weft_clip.length;
    const each = words.map((_, i) => [`word ${i}`, message.weft_each.slice(i * count, (i + 1) * count)]);
    this.show({ clip: message.weft_clip, together: message.weft_together, ...Object.fromEntries(each) });
    const choices = [["all", -1], ...words.map((word, i) => [word, i])];
    this.names.replaceChildren(...choices.map(([text, i]) => button(text, text, () => ((this.word = i), this.paint()))));
  }

  draw(context) {
    const image = this.at("clip"), map = this.at(this.word < 0 ? "together" : `word ${this.word}`);
    if (!image) return;
    const box = this.box(image);
    this.put(context, image, box);
    if (!map) return;
    context.globalAlpha = 0.55;
    this.put(context, above(map, widgetOf(this.node, "threshold").value), box);
    context.globalAlpha = 1;
  }
}

/** Red where a gray picture is over a threshold of 0..1. */
function above(map, threshold) {
  const pixels = pixelsOf(map);
  for (let i = 0; i < pixels.data.length; i += 4)
    pixels.data.set([255, 64, 51, pixels.data[i] > 255 * threshold ? 255 : 0], i);
  return canvasOf(pixels);
}

forNodes(app, "words", "WeftPreviewWords", (node) => new Words(node));
