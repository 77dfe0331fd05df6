// A wire color for each kind of Weft socket, so that models, plans and trajectories are told apart.
import { app } from "../../scripts/app.js";

const COLORS = {
  WEFT_MODEL: "#b39ddb",
  WEFT_TRAJECTORY: "#4fc3f7",
  WEFT_PLAN: "#ffb74d",
  WEFT_CORRESPONDENCE: "#f06292",
  WEFT_CHUNKS: "#a1887f",
  WEFT_CHUNK: "#bcaaa4",
  WEFT_SAM: "#81c784",
  WEFT_CLIP: "#fff176",
  WEFT_FIT: "#90a4ae",
};

// A color theme may be laid over them later, so they are set again with every workflow.
function paint() {
  for (const [type, color] of Object.entries(COLORS)) {
    app.canvas.default_connection_color_byType[type] = color; // the canvas' slots
    LGraphCanvas.link_type_colors[type] = color; // wires
    document.documentElement.style.setProperty(`--color-datatype-${type}`, color); // Vue nodes' slots
  }
}

app.registerExtension({ name: "weft.colors", setup: paint, afterConfigureGraph: paint });
