// Preview STR Score: a click asks the node for that point.
import { app } from "../../scripts/app.js";
import { Player, forNodes, runAlone, set } from "./weft/player.js";

class Score extends Player {
  constructor(node) {
    super(node, { height: 300, hint: "Run once, then click a point." });
    this.canvas.title = "Click a point: what is it related to?";
    this.canvas.addEventListener("click", (event) => {
      const image = this.at("score"), at = image && this.pixel(event, image);
      if (!at) return;
      set(node, "x", Math.round((100 * at[0]) / image.naturalWidth) / 100);
      set(node, "y", Math.round((100 * at[1]) / image.naturalHeight) / 100);
      runAlone(app, node);
    });
  }

  told(message) {
    this.show({ score: message.images });
  }
}

forNodes(app, "score", "WeftPreviewSTRScore", (node) => new Score(node));
