// The browser half of the build and of the browser test: opens ComfyUI's real frontend and does jobs there.
// stdin: {url, chromium, jobs: [{build: columns of graphs.py} | {drop: workflow, name} | {help: type of a node in the graph}], screenshot: path or null}
// stdout: [{workflow, api} | {missing, api} | {text}], in the order of the jobs.
const { chromium } = require("playwright-core");
const { readFileSync } = require("fs");

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
const SETTINGS = { "Comfy.TutorialCompleted": true, "Comfy.Locale": "en" }; // whatever the server's user has set

// Runs in the page. Widgets, slots and heights are the frontend's own; we choose only titles, values and columns.
async function build(columns) {
  const WIDTH = 340, GAP = 40, TITLE = LiteGraph.NODE_TITLE_HEIGHT;
  const HEIGHTS = { LoadVideo: 420, SaveVideo: 420, MarkdownNote: 440, WeftEncodePrompt: 160, PreviewAny: 200 };
  const app = window.app;
  app.graph.clear();
  const nodes = {};
  let x = 0;
  for (const [heading, column] of Object.entries(columns)) {
    let y = 0;
    for (const [title, { type, inputs }] of Object.entries(column)) {
      const node = LiteGraph.createNode(type);
      if (!node) throw new Error(`the server has no node ${type}`);
      if (nodes[title]) throw new Error(`two nodes are titled ${title}`);
      Object.assign(node, { title, pos: [x, y] });
      app.graph.add(node);
      for (const [name, value] of Object.entries(inputs)) {
        if (value?.title) continue;
        const widget = node.widgets.find((w) => w.name === name);
        if (!widget) throw new Error(`${type} has no widget ${name}`);
        widget.value = value;
      }
      node.setSize([WIDTH, Math.max(node.computeSize()[1], HEIGHTS[type] ?? 0)]);
      nodes[title] = node;
      y += node.size[1] + TITLE + GAP;
    }
    const group = new LiteGraph.LGraphGroup(heading);
    group.pos = [x - GAP / 2, -TITLE - GAP - 20];
    group.size = [WIDTH + GAP, y + GAP + 10];
    app.graph.add(group);
    x += WIDTH + 2 * GAP;
  }
  for (const column of Object.values(columns))
    for (const [title, { inputs }] of Object.entries(column))
      for (const [name, value] of Object.entries(inputs)) {
        if (!value?.title) continue;
        const from = nodes[value.title], to = nodes[title];
        const output = value.output ? from.outputs.findIndex((o) => o.name === value.output) : 0;
        const input = to.inputs.findIndex((i) => i.name === name);
        if (!from.connect(output, to, input)) throw new Error(`cannot connect ${value.title} to ${title}.${name}`);
      }
  const { workflow, output } = await app.graphToPrompt();
  return { workflow, api: output };
}

async function drop(page, workflow, name) {
  await page.evaluate(() => window.app.graph.clear());
  const data = await page.evaluateHandle(
    ([text, name]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([text], name, { type: "application/json" }));
      return transfer;
    },
    [JSON.stringify(workflow), `${name}.json`],
  );
  await page.dispatchEvent("#graph-canvas", "dragover", { dataTransfer: data });
  await page.dispatchEvent("#graph-canvas", "drop", { dataTransfer: data });
  await page.waitForFunction((n) => window.app.graph._nodes.length === n, workflow.nodes.length, { timeout: 60000 });
  return page.evaluate(async () => {
    const nodes = window.app.graph._nodes;
    const missing = nodes.filter((n) => !(n.type in LiteGraph.registered_node_types)).map((n) => n.type);
    return { missing, api: (await window.app.graphToPrompt()).output };
  });
}

async function help(page, type) {
  const button = page.locator('[data-testid="info-button"]');
  for (let attempt = 0; !(await button.count()); attempt++) {
    if (attempt === 10) throw new Error(`selecting ${type} does not bring up the toolbox`);
    const [x, y] = await page.evaluate(titleOf, type);
    await page.mouse.click(x, y); // only a real click brings it up, and only once the canvas has settled
    await page.waitForTimeout(1000);
  }
  await button.dispatchEvent("click");
  const text = page.locator(".node-help-content");
  await text.locator("h1").waitFor({ timeout: 60000 }); // the panel opens empty
  return { text: await text.innerText() };
}

// Runs in the page: brings a node of this type into view and says where its title is.
function titleOf(type) {
  const { graph, canvas } = window.app;
  const node = graph._nodes.find((n) => n.type === type);
  canvas.ds.scale = 1;
  canvas.centerOnNode(node);
  const { left, top } = canvas.canvas.getBoundingClientRect();
  const [x, y] = canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] - 15]);
  return [left + x, top + y];
}

async function main({ url, chromium: executablePath, jobs, screenshot }) {
  const browser = await chromium.launch({ executablePath, headless: true, args: FLAGS });
  try {
    const page = await browser.newPage({ viewport: { width: 1600, height: 950 } });
    await page.route("**/api/settings", (route) =>
      route.request().method() === "GET" ? route.fulfill({ json: SETTINGS }) : route.fulfill({ json: {} }),
    );
    await page.goto(url, { waitUntil: "domcontentloaded", timeout: 60000 });
    const ready = () => window.app?.graph && window.app.extensionManager && LiteGraph.registered_node_types.LoadVideo;
    await page.waitForFunction(ready, null, { timeout: 60000 });
    const results = [];
    for (const job of jobs) {
      if (job.build) results.push(await page.evaluate(build, job.build));
      else if (job.drop) results.push(await drop(page, job.drop, job.name));
      else results.push(await help(page, job.help));
    }
    if (screenshot) {
      await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Canvas.FitView"));
      await page.waitForTimeout(1500);
      await page.screenshot({ path: screenshot });
    }
    process.stdout.write(JSON.stringify(results));
  } finally {
    await browser.close();
  }
}

main(JSON.parse(readFileSync(0, "utf8"))).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
