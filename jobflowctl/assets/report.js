"use strict";
// Draws the charts of a report from the JSON in the page. Labels are text, never HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--dim").trim();
  const line = style.getPropertyValue("--line").trim();
  const GOOD = "#2f9e63", BAD = "#d6455d", MIXED = "#d99a2b", THERE = "#8aa4c8";
  const REST = ["#8aa4c8", "#b7c6dc", "#6f87a8", "#c9b6dc", "#9a86b8", "#d6455d", "#e58a98"];
  Chart.defaults.color = ink;
  Chart.defaults.borderColor = line;
  Chart.defaults.animation = false;
  Chart.defaults.maintainAspectRatio = false;
  Chart.defaults.font.family = "system-ui, sans-serif";

  const time = (seconds) => {
    if (seconds === 0) return "0";
    if (seconds < 1) return (seconds * 1000).toPrecision(3) + " ms";
    if (seconds < 60) return Number(seconds.toPrecision(3)) + " s";
    if (seconds < 3600) return Number((seconds / 60).toPrecision(3)) + " min";
    return Number((seconds / 3600).toPrecision(3)) + " h";
  };
  const axis = (text, more) => ({ title: { display: true, text }, ...more });
  const ticks = { ticks: { callback: (value) => time(value), maxTicksLimit: 12 } };
  const draw = (id, config) => new Chart(document.getElementById(id), config);

  const total = data.ledger.reduce((sum, one) => sum + one[1], 0) || 1;
  draw("ledger", {
    type: "bar",
    data: {
      labels: ["slot time"],
      datasets: data.ledger.map(([label, seconds], index) => ({
        label, data: [100 * seconds / total],
        backgroundColor: index === 0 ? GOOD : label.startsWith("wasted") ? BAD
          : REST[(index - 1) % 5],
        borderColor: "#0003", borderWidth: 1,
      })),
    },
    options: {
      indexAxis: "y",
      scales: {
        x: { stacked: true, max: 100, ticks: { callback: (value) => value + " %" } },
        y: { stacked: true, display: false },
      },
      plugins: {
        legend: { position: "bottom", labels: { boxWidth: 12 } },
        tooltip: { callbacks: { label: (item) =>
          `${item.dataset.label}: ${item.parsed.x.toFixed(2)} %` } },
      },
    },
  });

  const speed = data.throughput;
  const points = (values) => values.map((y, index) => ({ x: speed.at[index], y }));
  draw("throughput", {
    type: "line",
    data: { datasets: [
      { label: "succeeded a second", data: points(speed.good), borderColor: GOOD,
        backgroundColor: GOOD + "55", fill: true, pointRadius: 0, borderWidth: 1.5 },
      { label: "failed or lost a second", data: points(speed.bad), borderColor: BAD,
        pointRadius: 0, borderWidth: 1.5 },
      { label: "workers", data: points(speed.workers), borderColor: THERE, yAxisID: "there",
        pointRadius: 0, borderWidth: 1.5, borderDash: [4, 3] },
    ] },
    options: {
      interaction: { mode: "index", intersect: false },
      scales: {
        x: { type: "linear", min: 0, ...ticks, ...axis("since the start") },
        y: { beginAtZero: true, ...axis("attempts a second") },
        there: { position: "right", beginAtZero: true, grid: { display: false },
          ...axis("workers") },
      },
    },
  });

  const rows = data.timeline;
  const bars = (kind) => rows.flatMap((row) => row.bars.filter((one) => one[0] === kind)
    .map((one) => ({ y: row.worker, x: [one[1], Math.min(one[2], row.to)] })));
  const layer = (label, color, values, thick) => ({ label, data: values, backgroundColor: color,
    grouped: false, barPercentage: thick, categoryPercentage: 1 });
  draw("timeline", {
    type: "bar",
    data: { labels: rows.map((row) => row.worker), datasets: [
      layer("succeeding", GOOD, bars("good"), 0.8),
      layer("failing", BAD, bars("bad"), 0.8),
      layer("both", MIXED, bars("mixed"), 0.8),
      layer("there", THERE + "66", rows.map((row) => ({ y: row.worker, x: [row.from, row.to] })),
        0.95),
    ] },
    options: {
      indexAxis: "y",
      scales: {
        x: { min: 0, ...ticks, ...axis("since the start") },
        y: { ticks: { autoSkip: false, font: { size: 10 }, callback(value) {
          const name = this.getLabelForValue(value);
          return name.length > 26 ? name.slice(0, 12) + "…" + name.slice(-12) : name;
        } } },
      },
      plugins: { tooltip: { callbacks: { label: (item) => {
        const [from, to] = item.raw.x;
        return `${item.dataset.label} from ${time(from)} to ${time(to)}`;
      } } } },
    },
  });

  const found = data.durations;
  draw("durations", {
    type: "bar",
    data: {
      labels: found.from.map((from, index) => `${time(from)} to ${time(found.to[index])}`),
      datasets: [{ label: "successful attempts", data: found.count, backgroundColor: GOOD,
        barPercentage: 1, categoryPercentage: 0.95 }],
    },
    options: {
      scales: { y: { beginAtZero: true, ...axis("attempts") },
        x: { ticks: { maxTicksLimit: 9, callback(value) {
          return time(found.from[value]);
        } } } },
      plugins: { legend: { display: false } },
    },
  });
  // For tests: everything above was drawn.
  document.body.dataset.drawn = String(document.querySelectorAll("canvas").length);
})();
