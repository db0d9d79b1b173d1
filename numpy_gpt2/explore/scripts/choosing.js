// Choosing

/** Changes what is chosen, and draws again what shows it. */
function choose(change) {
  Object.assign(chosen, change);
  markTokens();
  openBlock();
  markThumbnails();
  drawHead();
  markGrids();
  drawParts();
}
