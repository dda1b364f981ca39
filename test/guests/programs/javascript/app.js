// A JavaScript component.
export const run = {
  run() {
    const words = "the quick brown fox".split(" ").map((word) => word.toUpperCase());
    console.log(JSON.stringify({ words, sum: [1, 2, 3].reduce((a, b) => a + b) }));
    console.error("on the other stream");
  },
};
