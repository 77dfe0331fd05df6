// Edit Candidates: the best one is clicked, and its number goes into `choice`.
import { app } from "../../scripts/app.js";
import { Player, forNodes, set, widgetOf, write } from "./weft/player.js";

class Candidates extends Player {
  constructor(node) {
    super(node, { height: 260, hint: "Run once, then click the best." });
    this.bar.remove();
    this.canvas.title = "Click the best, or press its number";
    this.canvas.addEventListener("click", (event) => {
      const [x, y] = this.place(event), { columns, rows } = this.grid;
      this.choose(Math.floor((y / this.canvas.height) * rows) * columns + Math.floor((x / this.canvas.width) * columns));
    });
    const choice = widgetOf(node, "choice"), called = choice.callback;
    choice.callback = (...given) => (called?.apply(choice, given), this.paint());
  }

  told(message) {
    this.show({ candidates: message.images });
  }

  get grid() {
    const columns = Math.ceil(Math.sqrt(this.count));
    return { columns, rows: Math.ceil(this.count / Math.max(columns, 1)) };
  }

  choose(number) {
    if (number < this.count) set(this.node, "choice", number);
    this.paint();
  }

  key(event) {
    if (!/^[0-9]$/.test(event.key)) return false;
    this.choose(+event.key);
    return true;
  }

  draw(context) {
    const { columns, rows } = this.grid, chosen = widgetOf(this.node, "choice").value;
    const [wide, high] = [this.canvas.width / columns, this.canvas.height / rows];
    this.clips.candidates.forEach((_, i) => {
      const image = this.at("candidates", i), [x, y] = [(i % columns) * wide, Math.floor(i / columns) * high];
      if (!image) return;
      const scale = Math.min((wide - 8) / image.naturalWidth, (high - 8) / image.naturalHeight);
      const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
      const box = { x: x + (wide - w) / 2, y: y + (high - h) / 2, w, h };
      this.put(context, image, box);
      context.lineWidth = 4;
      context.strokeStyle = i === chosen ? "#0f3" : "transparent";
      context.strokeRect(box.x, box.y, w, h);
      write(context, i, box.x + 5, box.y + 15, "#fff");
    });
  }
}

forNodes(app, "candidates", "WeftEditCandidates", (node) => new Candidates(node));
