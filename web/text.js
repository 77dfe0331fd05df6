// What a node has to say, in the node: the figures of an edit, the report on a clip.
import { app } from "../../scripts/app.js";
import { addView, element, forNodes } from "./weft/player.js";

const HEIGHT = 120;

function text(node) {
  const style = { margin: "0", height: "100%", minHeight: `${HEIGHT}px`, overflow: "auto", font: "12px monospace" };
  Object.assign(style, { whiteSpace: "pre-wrap", userSelect: "text", color: "var(--input-text)" });
  const shown = element("pre", { style, className: "weft-view", textContent: "Run once to see it." });
  for (const kind of ["pointerdown", "wheel"]) shown.addEventListener(kind, (event) => event.stopPropagation());
  addView(node, shown, HEIGHT);
  return { told: (message) => (shown.textContent = message.text.join("")) };
}

for (const [name, type] of [["figures", "WeftEvaluateEdit"], ["report", "WeftPrepareClip"]]) forNodes(app, name, type, text);
