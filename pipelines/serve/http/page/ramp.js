// The colours of weights, from dark to bright.

const RAMP = [[36, 16, 84], [126, 30, 130], [220, 60, 90], [252, 150, 50], [252, 240, 150]];

// The colour of a weight between 0 and 1, as [red, green, blue].
export function ramp(t) {
  const at = Math.min(0.9999, Math.max(0, t)) * (RAMP.length - 1), i = Math.floor(at), part = at - i;
  return RAMP[i].map((low, c) => Math.round(low + (RAMP[i + 1][c] - low) * part));
}
