// @ts-check
// Singular values of LoRA's update γ B A, without ever forming it.
"use strict";

const SWEEPS = 30;

/**
 * Gram matrix of the `rank` rows of a matrix: G[i][j] = Σ row_i · row_j.
 * @param {(row: number, column: number) => number} value
 * @param {number} rank
 * @param {number} length of a row
 */
function gram(value, rank, length) {
  return Array.from({ length: rank }, (_, i) => Array.from({ length: rank }, (__, j) => {
    let sum = 0;
    for (let at = 0; at < length; at += 1) sum += value(i, at) * value(j, at);
    return sum;
  }));
}

/**
 * Lower triangle L with L Lᵀ = G, for G positive semidefinite; a direction without weight gives a column of zeros.
 * @param {number[][]} G
 */
function cholesky(G) {
  const L = G.map((row) => row.map(() => 0));
  for (let j = 0; j < G.length; j += 1) {
    let left = G[j][j];
    for (let k = 0; k < j; k += 1) left -= L[j][k] ** 2;
    L[j][j] = left > 1e-14 * G[j][j] ? Math.sqrt(left) : 0;
    for (let i = j + 1; i < G.length && L[j][j]; i += 1) {
      let sum = G[i][j];
      for (let k = 0; k < j; k += 1) sum -= L[i][k] * L[j][k];
      L[i][j] = sum / L[j][j];
    }
  }
  return L;
}

/**
 * Eigenvalues of a symmetric matrix by Jacobi's rotations, descending. The matrix is used up.
 * @param {number[][]} S
 */
function eigenvalues(S) {
  const n = S.length;
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    let beside = 0, all = 0;
    for (let p = 0; p < n; p += 1) for (let q = 0; q < n; q += 1) {
      all += S[p][q] ** 2;
      if (p !== q) beside += S[p][q] ** 2;
    }
    if (beside <= 1e-24 * all) break;
    for (let p = 0; p < n; p += 1) for (let q = p + 1; q < n; q += 1) rotate(S, p, q);
  }
  return S.map((row, at) => row[at]).sort((a, b) => b - a);
}

/** Make S[p][q] zero by a rotation from both sides. @param {number[][]} S @param {number} p @param {number} q */
function rotate(S, p, q) {
  if (S[p][q] === 0) return;
  const angle = (S[q][q] - S[p][p]) / (2 * S[p][q]);
  const tangent = (angle < 0 ? -1 : 1) / (Math.abs(angle) + Math.sqrt(angle * angle + 1));
  const cos = 1 / Math.sqrt(tangent * tangent + 1), sin = tangent * cos;
  for (let k = 0; k < S.length; k += 1) [S[k][p], S[k][q]] = [cos * S[k][p] - sin * S[k][q], sin * S[k][p] + cos * S[k][q]];
  for (let k = 0; k < S.length; k += 1) [S[p][k], S[q][k]] = [cos * S[p][k] - sin * S[q][k], sin * S[p][k] + cos * S[q][k]];
}

/**
 * The `rank` singular values of γ B A, descending: with A Aᵀ = L Lᵀ, their squares are γ² times the eigenvalues of
 * Lᵀ (Bᵀ B) L, which is only (rank, rank).
 * @param {Float32Array} A (d_in, rank)
 * @param {Float32Array} B (rank, d_out)
 * @param {number} rank
 * @param {number} gamma
 */
function singularValues(A, B, rank, gamma) {
  const d_in = A.length / rank, d_out = B.length / rank;
  const L = cholesky(gram((row, at) => A[at * rank + row], rank, d_in));
  const G = gram((row, at) => B[row * d_out + at], rank, d_out);
  const product = (/** @type {number[][]} */ X, /** @type {number[][]} */ Y) =>
    X.map((row) => Y[0].map((_, j) => row.reduce((sum, value, k) => sum + value * Y[k][j], 0)));
  const turned = L.map((_, i) => L.map((row) => row[i]));
  return eigenvalues(product(turned, product(G, L))).map((value) => gamma * Math.sqrt(Math.max(0, value)));
}

module.exports = { singularValues };
