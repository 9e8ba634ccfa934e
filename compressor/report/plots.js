"use strict";
// Draws the page's figures with the library that the page brings, in the page's own colours.
(function () {
  const text = (id) => document.getElementById(id).textContent;
  const figures = JSON.parse(text("figures"));
  const note = document.getElementById("plots-note");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 40rem)");
  const hovers = window.matchMedia("(hover: hover)"); // a finger scrolls the page, not a plot

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const names = ["back", "text", "soft", "rule", "was", "kept", "pick", "warn", "card"];
    return Object.fromEntries(names.map((n) => [n, style.getPropertyValue("--" + n).trim()]));
  }

  function styled(trace, c) {
    const marks = {
      dot: { marker: { color: c.soft, opacity: 0.45, size: 6 } },
      front: { marker: { color: c.kept, size: 8 }, line: { color: c.kept, width: 1.5 } },
      line: { line: { color: c.kept, width: 1.5, shape: "linear" } },
      pick: { marker: { color: c.pick, size: 12 }, line: { color: c.pick, width: 1.5 } },
      original: { marker: { color: c.text, size: 11, symbol: "circle-open", line: { width: 2 } } },
      was: { marker: { color: c.was } },
      kept: { marker: { color: c.kept } },
    };
    const bar = trace.type === "bar" ? { marker: { color: c[trace.meta] } } : marks[trace.meta];
    return Object.assign({}, trace, bar, {
      hoverlabel: {
        bgcolor: c.card, bordercolor: c.rule, align: "left", namelength: -1,
        font: { color: c.text, size: 12 },
      },
    });
  }

  function layout(figure, c) {
    const given = figure.layout;
    const axis = (own) =>
      Object.assign({ gridcolor: c.rule, linecolor: c.rule, zeroline: false, automargin: true }, own);
    const shapes = (given.shapes || []).map((s) =>
      Object.assign({}, s, { line: Object.assign({}, s.line, { color: c.warn }) }));
    return Object.assign({}, given, {
      xaxis: axis(given.xaxis), yaxis: axis(given.yaxis), shapes,
      height: figure.height, autosize: true, hovermode: "closest",
      dragmode: hovers.matches ? "zoom" : false,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: c.soft, family: "system-ui, sans-serif", size: 12 },
      margin: { l: narrow.matches ? 40 : 60, r: 10, t: 10, b: 45 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: c.text } },
      showlegend: true,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: c.soft, activecolor: c.text },
    });
  }

  // The whole architecture of the point that was clicked: texts only, never markup.
  function show(figure, point) {
    const place = document.getElementById("picked");
    const chosen = point.customdata;
    if (!place || !figure.layers || !Array.isArray(chosen)) return;
    const table = document.createElement("table");
    figure.layers.forEach((layer, i) => {
      const row = table.insertRow();
      const option = layer[1 + chosen[i]];
      row.insertCell().textContent = layer[0];
      row.insertCell().textContent = option === undefined ? "option " + chosen[i] : option;
      row.insertCell().textContent = "of " + (layer.length > 1 ? layer[layer.length - 1] : "?");
    });
    place.replaceChildren(table);
    place.hidden = false;
  }

  function plot(place, figure, c) {
    Plotly.react(place, figure.data.map((t) => styled(t, c)), layout(figure, c), {
      responsive: true, displaylogo: false, displayModeBar: hovers.matches ? "hover" : false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
  }

  function draw() {
    const c = colours();
    for (const [name, figure] of Object.entries(figures)) {
      const place = document.getElementById("plot-" + name);
      if (!place) continue;
      if (place.classList.contains("drawn")) {
        plot(place, figure, c);
        continue;
      }
      const plain = [...place.childNodes];
      place.replaceChildren();
      place.classList.add("drawn");
      try {
        plot(place, figure, c);
      } catch (error) {
        place.classList.remove("drawn");
        place.replaceChildren(...plain);
        throw error;
      }
      place.on("plotly_click", (event) => show(figure, event.points[0]));
    }
    document.documentElement.dataset.plots = "drawn";
  }

  async function start() {
    const packed = Uint8Array.from(atob(text("library")), (s) => s.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    draw();
    dark.addEventListener("change", draw);
    narrow.addEventListener("change", draw);
  }

  start().catch((error) => {
    note.hidden = false;
    note.textContent =
      "This browser could not draw the interactive charts (" + error.message +
      "); plain ones stand in their place.";
  });
})();
