// Compare Videos: a divider to be moved, side by side, or the difference.
import { app } from "../../scripts/app.js";
import { Player, button, forNodes, write } from "./weft/player.js";

const WAYS = ["wipe", "side by side", "difference"];

class Comparer extends Player {
  constructor(node) {
    super(node, { height: 300, hint: "Run once: the clips stand here in step." });
    Object.assign(this, { way: 0, divider: 0.5 });
    this.ways = WAYS.map((name, way) => button(name, `${name} (${way + 1})`, () => this.choose(way)));
    this.tools.append(...this.ways);
    this.canvas.addEventListener("pointermove", (event) => {
      this.divider = this.place(event)[0] / this.canvas.width;
      this.paint();
    });
    this.choose(0);
  }

  told(message, { fps }) {
    this.show({ a: message.weft_a, b: message.weft_b, c: message.weft_c }, fps);
  }

  choose(way) {
    this.way = way;
    this.ways.forEach((made, i) => (made.style.fontWeight = i === way ? "bold" : "normal"));
    this.paint();
  }

  key(event) {
    const move = { a: -0.05, d: 0.05 }[event.key];
    if (move) {
      this.divider = Math.max(0, Math.min(1, this.divider + move));
      this.paint();
      return true;
    }
    const way = Number(event.key) - 1;
    if (!(way in WAYS)) return super.key(event);
    this.choose(way);
    return true;
  }

  draw(context) {
    const names = Object.keys(this.clips), [a, b] = [this.at("a"), this.at("b")];
    if (!a || !b) return;
    if (this.way === 1) {
      names.forEach((name, i) => this.at(name) && this.put(context, this.at(name), this.box(this.at(name), i, names.length)));
      return;
    }
    const box = this.box(a);
    this.put(context, a, box);
    if (this.way === 2) {
      context.globalCompositeOperation = "difference";
      this.put(context, b, box);
      context.globalCompositeOperation = "source-over";
      return;
    }
    const x = this.divider * this.canvas.width;
    context.save();
    context.beginPath();
    context.rect(x, 0, this.canvas.width, this.canvas.height);
    context.clip();
    this.put(context, b, box);
    context.restore();
    context.fillStyle = "#fff";
    context.fillRect(x - 1, 0, 2, this.canvas.height);
    write(context, "a", x - 6, 16, "#fff", "right");
    write(context, "b", x + 6, 16, "#fff");
  }
}

forNodes(app, "compare", "WeftCompareVideos", (node) => new Comparer(node));
