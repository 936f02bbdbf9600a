"use strict";

/*
 * LeNet-5 in plain JavaScript: numbers in, numbers out, nothing of the page.
 *
 * A weight w is scaled by c. Only what the weight reaches is computed again, as differences from the network as it is (c = 1). So a change of
 * the loss by a millionth keeps its digits. All sums are in double precision. Tensors are flat arrays in PyTorch's order.
 */
const SnipNetwork = (() => {
  const SIDE = 28; // of an image
  const KERNEL = 5;
  const TAPS = KERNEL * KERNEL;
  const PADDING = 2; // of the first convolution
  const CONV1 = { channels: 6, side: 28, pooled: 14 };
  const CONV2 = { channels: 16, side: 10, pooled: 5 };
  const UNITS = [400, 120, 84, 10]; // inputs of full 1, and the outputs of full 1, full 2 and full 3
  const CLASSES = 10;
  const PIXELS = SIDE * SIDE;
  const Z1 = CONV1.side * CONV1.side;
  const P1 = CONV1.pooled * CONV1.pooled;
  const Z2 = CONV2.side * CONV2.side;
  const P2 = CONV2.pooled * CONV2.pooled;
  const BLOCKED = 4; // instead of one of a window's four places: its largest number is not positive

  const TENSORS = [
    { name: "conv1.weight", shape: [6, 1, 5, 5] },
    { name: "conv1.bias", shape: [6] },
    { name: "conv2.weight", shape: [16, 6, 5, 5] },
    { name: "conv2.bias", shape: [16] },
    { name: "full1.weight", shape: [120, 400] },
    { name: "full1.bias", shape: [120] },
    { name: "full2.weight", shape: [84, 120] },
    { name: "full2.bias", shape: [84] },
    { name: "full3.weight", shape: [10, 84] },
    { name: "full3.bias", shape: [10] },
  ];
  let total = 0;
  for (const tensor of TENSORS) {
    tensor.size = tensor.shape.reduce((a, b) => a * b, 1);
    tensor.start = total; // of the tensor among all parameters
    total += tensor.size;
  }
  const TOTAL = total;

  // The gates, in the order in which a number meets them, and how many of them an image passes.
  const GATES = [
    { layer: "conv 1", kind: "ReLU", count: CONV1.channels * Z1 },
    { layer: "conv 1", kind: "max-pool", count: CONV1.channels * P1 },
    { layer: "conv 2", kind: "ReLU", count: CONV2.channels * Z2 },
    { layer: "conv 2", kind: "max-pool", count: CONV2.channels * P2 },
    { layer: "full 1", kind: "ReLU", count: UNITS[1] },
    { layer: "full 2", kind: "ReLU", count: UNITS[2] },
  ];

  /** A matrix [rows, columns] as [columns, rows], in double precision. */
  function transposed(matrix, rows, columns) {
    const turned = new Float64Array(rows * columns);
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) turned[c * rows + r] = matrix[r * columns + c];
    return turned;
  }

  /** Log-probabilities of ten logits. */
  function logSoftmax(logits, at, target) {
    let largest = -Infinity;
    for (let k = 0; k < CLASSES; k++) largest = Math.max(largest, logits[k]);
    let sum = 0;
    for (let k = 0; k < CLASSES; k++) sum += Math.exp(logits[k] - largest);
    const log = largest + Math.log(sum);
    for (let k = 0; k < CLASSES; k++) target[at + k] = logits[k] - log;
  }

  /**
   * The change of one image's loss for a change of its logits: log(sum p exp(dz)) - dz of the right class.
   * Small changes go through expm1 and log1p, so that nothing cancels.
   */
  function lossChange(logP, at, dz, label) {
    let sum = 0;
    for (let k = 0; k < CLASSES; k++) sum += Math.exp(logP[at + k]) * Math.expm1(dz[k] - dz[label]);
    if (sum > -0.5 && Number.isFinite(sum)) return Math.log1p(sum);
    let largest = -Infinity;
    for (let k = 0; k < CLASSES; k++) largest = Math.max(largest, logP[at + k] + dz[k] - dz[label]);
    sum = 0;
    for (let k = 0; k < CLASSES; k++) sum += Math.exp(logP[at + k] + dz[k] - dz[label] - largest);
    return largest + Math.log(sum);
  }

  /** A network with its weights, and what it computes for each image. */
  class Network {
    /**
     * @param {Float32Array} parameters all of them, tensor after tensor
     * @param {Float64Array} images pixels after normalisation, image after image
     * @param {Uint8Array} labels
     */
    constructor(parameters, images, labels) {
      this.parameters = parameters;
      this.images = images;
      this.labels = labels;
      this.count = labels.length;
      const part = (name) => {
        const tensor = TENSORS.find((t) => t.name === name);
        return Float64Array.from(parameters.subarray(tensor.start, tensor.start + tensor.size));
      };
      this.kernels1 = part("conv1.weight");
      this.bias1 = part("conv1.bias");
      this.kernels2 = part("conv2.weight");
      this.bias2 = part("conv2.bias");
      this.full = [1, 2, 3].map((i) => transposed(part(`full${i}.weight`), UNITS[i], UNITS[i - 1]));
      this.biases = [1, 2, 3].map((i) => part(`full${i}.bias`));
      // Per image: before ReLU and max-pool, after them, and which place of a window passes.
      this.z1 = new Float64Array(this.count * CONV1.channels * Z1);
      this.p1 = new Float64Array(this.count * CONV1.channels * P1);
      this.w1 = new Uint8Array(this.count * CONV1.channels * P1);
      this.z2 = new Float64Array(this.count * CONV2.channels * Z2);
      this.p2 = new Float64Array(this.count * CONV2.channels * P2);
      this.w2 = new Uint8Array(this.count * CONV2.channels * P2);
      this.a1 = new Float64Array(this.count * UNITS[1]);
      this.a2 = new Float64Array(this.count * UNITS[2]);
      this.logP = new Float64Array(this.count * CLASSES);
      // Changes of one image.
      this.dz1 = new Float64Array(Z1);
      this.dp1 = new Float64Array(P1);
      this.dz2 = new Float64Array(CONV2.channels * Z2);
      this.dp2 = new Float64Array(UNITS[0]);
      this.da1 = new Float64Array(UNITS[1]);
      this.da2 = new Float64Array(UNITS[2]);
      this.dz = new Float64Array(CLASSES);
      this.prepared = 0;
    }

    /** Mean loss over all images. */
    get loss() {
      let sum = 0;
      for (let n = 0; n < this.count; n++) sum -= this.logP[n * CLASSES + this.labels[n]];
      return sum / this.count;
    }

    /** Share of the images that get the wrong class. */
    get errorRate() {
      let wrong = 0;
      for (let n = 0; n < this.count; n++) {
        const logP = this.logP.subarray(n * CLASSES, (n + 1) * CLASSES);
        if (logP.indexOf(Math.max(...logP)) !== this.labels[n]) wrong += 1;
      }
      return wrong / this.count;
    }

    /** Pass the next few images through the network; whether all are done. */
    prepare(images = this.count) {
      const stop = Math.min(this.count, this.prepared + images);
      for (; this.prepared < stop; this.prepared++) this.forward(this.prepared);
      return this.prepared === this.count;
    }

    forward(n) {
      const { side: side1, pooled: pooled1 } = CONV1;
      for (let o = 0; o < CONV1.channels; o++) {
        const at = (n * CONV1.channels + o) * Z1;
        this.z1.fill(this.bias1[o], at, at + Z1);
        for (let tap = 0; tap < TAPS; tap++) this.addTap1(n, tap, this.kernels1[o * TAPS + tap], this.z1, at);
        this.pool(this.z1, at, side1, this.p1, this.w1, (n * CONV1.channels + o) * P1, pooled1);
      }
      for (let o = 0; o < CONV2.channels; o++) {
        const at = (n * CONV2.channels + o) * Z2;
        this.z2.fill(this.bias2[o], at, at + Z2);
        for (let i = 0; i < CONV1.channels; i++) {
          const from = (n * CONV1.channels + i) * P1;
          this.addKernel2(this.p1, from, (o * CONV1.channels + i) * TAPS, this.z2, at);
        }
        this.pool(this.z2, at, CONV2.side, this.p2, this.w2, (n * CONV2.channels + o) * P2, CONV2.pooled);
      }
      const a1 = this.linear(0, this.p2.subarray(n * UNITS[0], (n + 1) * UNITS[0]));
      this.a1.set(a1, n * UNITS[1]);
      const a2 = this.linear(1, a1.map((a) => Math.max(a, 0)));
      this.a2.set(a2, n * UNITS[2]);
      logSoftmax(this.linear(2, a2.map((a) => Math.max(a, 0))), n * CLASSES, this.logP);
    }

    /** Outputs of a fully connected layer. */
    linear(layer, inputs) {
      const outputs = this.biases[layer].slice();
      inputs.forEach((input, i) => this.addColumn(layer, i, input, outputs));
      return outputs;
    }

    /** Add what one input of a fully connected layer gives to all of its outputs. */
    addColumn(layer, i, input, outputs) {
      const [matrix, size] = [this.full[layer], outputs.length];
      for (let j = 0, at = i * size; j < size; j++) outputs[j] += matrix[at + j] * input;
    }

    /** Add what one weight of a kernel of conv 1 gives to all places of its channel. */
    addTap1(n, tap, weight, target, at) {
      const [down, right] = [Math.floor(tap / KERNEL) - PADDING, (tap % KERNEL) - PADDING];
      const image = n * PIXELS;
      for (let y = Math.max(0, -down); y < Math.min(SIDE, SIDE - down); y++) {
        const from = image + (y + down) * SIDE + right;
        for (let x = Math.max(0, -right); x < Math.min(SIDE, SIDE - right); x++) {
          target[at + y * SIDE + x] += weight * this.images[from + x];
        }
      }
    }

    /** Add what one weight of a kernel of conv 2 gives to all places of its channel, from one channel of its inputs. */
    addTap2(source, from, tap, weight, target, at) {
      const [side, width] = [CONV2.side, CONV1.pooled];
      const column = tap % KERNEL;
      let read = from + ((tap - column) / KERNEL) * width + column;
      for (let write = at, row = 0; row < side; row++, read += width - side) {
        for (const end = write + side; write < end; write++, read++) target[write] += weight * source[read];
      }
    }

    /** Add what one kernel of conv 2 gives to its channel, from one channel of its inputs. Written out, because most of the time goes here. */
    addKernel2(source, from, kernel, target, at) {
      const [k, width] = [this.kernels2, CONV1.pooled];
      for (let y = 0, write = at; y < CONV2.side; y++) {
        for (let x = 0; x < CONV2.side; x++, write++) {
          let sum = 0;
          for (let row = 0, read = from + y * width + x, tap = kernel; row < KERNEL; row++, read += width, tap += KERNEL) {
            sum += k[tap] * source[read] + k[tap + 1] * source[read + 1] + k[tap + 2] * source[read + 2]
              + k[tap + 3] * source[read + 3] + k[tap + 4] * source[read + 4];
          }
          target[write] += sum;
        }
      }
    }

    /** ReLU and max-pool of one channel: the largest positive number of each window, and its place. */
    pool(z, at, side, p, winners, to, pooled) {
      for (let y = 0; y < pooled; y++) {
        for (let x = 0; x < pooled; x++) {
          let largest = 0;
          let winner = BLOCKED;
          for (let k = 0; k < 4; k++) {
            const value = z[at + (2 * y + (k >> 1)) * side + 2 * x + (k & 1)];
            if (value > largest) {
              largest = value;
              winner = k;
            }
          }
          p[to + y * pooled + x] = largest;
          winners[to + y * pooled + x] = winner;
        }
      }
    }

    /**
     * Change of ReLU and max-pool of one channel for changes of its inputs.
     * @param {boolean} frozen whether all gates stay as they are, as for a slope
     * @param {?Float64Array} switched counts of gates that switch: of ReLU at `gate`, of max-pool one further
     */
    poolChange(z, at, side, changes, from, winners, to, pooled, target, place, frozen, switched, gate) {
      for (let y = 0; y < pooled; y++) {
        for (let x = 0; x < pooled; x++) {
          const i = y * pooled + x;
          const before = winners[to + i];
          const corner = 2 * y * side + 2 * x;
          if (frozen) {
            target[place + i] = before === BLOCKED ? 0 : changes[from + corner + (before >> 1) * side + (before & 1)];
            continue;
          }
          let largest = 0;
          let winner = BLOCKED;
          for (let k = 0; k < 4; k++) {
            const offset = corner + (k >> 1) * side + (k & 1);
            const old = z[at + offset];
            const value = old + changes[from + offset];
            if (value > largest) {
              largest = value;
              winner = k;
            }
            if (switched !== null && value > 0 !== old > 0) switched[gate] += 1;
          }
          if (winner === before) {
            target[place + i] = winner === BLOCKED ? 0 : changes[from + corner + (winner >> 1) * side + (winner & 1)];
            continue;
          }
          const old = before === BLOCKED ? 0 : z[at + corner + (before >> 1) * side + (before & 1)];
          target[place + i] = largest - old;
          if (switched !== null && winner !== BLOCKED && before !== BLOCKED) switched[gate + 1] += 1;
        }
      }
    }

    /** Change of a ReLU for a change of its input. */
    reluChange(before, change, frozen, switched, gate) {
      const after = before + change;
      if (frozen || after > 0 === before > 0) return before > 0 ? change : 0;
      if (switched !== null) switched[gate] += 1;
      return before > 0 ? -before : after;
    }

    /**
     * Changes of one image's logits when one parameter changes by `step` times its value; they are left in `this.dz`.
     * With `frozen` gates and a step of 1 these are the slopes of the logits along c.
     */
    logitChange(tensor, index, step, n, frozen, switched) {
      const { name } = TENSORS[tensor];
      const delta = step * this.parameters[TENSORS[tensor].start + index];
      const isBias = name.endsWith("bias");
      this.dz.fill(0);
      this.da2.fill(0);
      this.da1.fill(0);
      if (name.startsWith("conv1")) this.fromConv1(index, isBias, delta, n, frozen, switched);
      else if (name.startsWith("conv2")) this.fromConv2(index, isBias, delta, n, frozen, switched);
      else {
        const layer = Number(name[4]);
        const inputs = UNITS[layer - 1];
        const [unit, i] = isBias ? [index, 0] : [Math.floor(index / inputs), index % inputs];
        const source = layer === 1 ? this.p2 : layer === 2 ? this.a1 : this.a2;
        const change = isBias ? delta : delta * Math.max(0, source[n * inputs + i]);
        if (layer === 1) {
          this.da1[unit] = change;
          this.fromFull1(n, frozen, switched, unit, unit + 1);
        } else if (layer === 2) {
          this.da2[unit] = change;
          this.fromFull2(n, frozen, switched, unit, unit + 1);
        } else this.dz[unit] = change;
      }
      return this.dz;
    }

    fromConv1(index, isBias, delta, n, frozen, switched) {
      const channel = isBias ? index : Math.floor(index / TAPS);
      this.dz1.fill(isBias ? delta : 0);
      if (!isBias) this.addTap1(n, index % TAPS, delta, this.dz1, 0);
      const at = n * CONV1.channels + channel;
      this.poolChange(this.z1, at * Z1, CONV1.side, this.dz1, 0, this.w1, at * P1, CONV1.pooled, this.dp1, 0, frozen, switched, 0);
      this.dz2.fill(0);
      for (let o = 0; o < CONV2.channels; o++) {
        this.addKernel2(this.dp1, 0, (o * CONV1.channels + channel) * TAPS, this.dz2, o * Z2);
      }
      this.afterConv2(n, frozen, switched, 0, CONV2.channels);
    }

    fromConv2(index, isBias, delta, n, frozen, switched) {
      const kernel = Math.floor(index / TAPS);
      const channel = isBias ? index : Math.floor(kernel / CONV1.channels);
      this.dz2.fill(isBias ? delta : 0, channel * Z2, (channel + 1) * Z2);
      const from = (n * CONV1.channels + (kernel % CONV1.channels)) * P1;
      if (!isBias) this.addTap2(this.p1, from, index % TAPS, delta, this.dz2, channel * Z2);
      this.afterConv2(n, frozen, switched, channel, channel + 1);
    }

    afterConv2(n, frozen, switched, first, stop) {
      for (let o = first; o < stop; o++) {
        const at = n * CONV2.channels + o;
        this.poolChange(this.z2, at * Z2, CONV2.side, this.dz2, o * Z2, this.w2, at * P2, CONV2.pooled, this.dp2, o * P2, frozen, switched, 2);
      }
      for (let i = first * P2; i < stop * P2; i++) if (this.dp2[i] !== 0) this.addColumn(0, i, this.dp2[i], this.da1);
      this.fromFull1(n, frozen, switched, 0, UNITS[1]);
    }

    fromFull1(n, frozen, switched, first, stop) {
      for (let j = first; j < stop; j++) {
        const change = this.reluChange(this.a1[n * UNITS[1] + j], this.da1[j], frozen, switched, 4);
        if (change !== 0) this.addColumn(1, j, change, this.da2);
      }
      this.fromFull2(n, frozen, switched, 0, UNITS[2]);
    }

    fromFull2(n, frozen, switched, first, stop) {
      for (let j = first; j < stop; j++) {
        const change = this.reluChange(this.a2[n * UNITS[2] + j], this.da2[j], frozen, switched, 5);
        if (change !== 0) this.addColumn(2, j, change, this.dz);
      }
    }

    /** Sum over some images of the changes of their losses when a parameter is scaled by c; adds to the counts of switched gates. */
    changeOver(tensor, index, c, first, stop, switched = null) {
      let sum = 0;
      for (let n = first; n < stop; n++) {
        const dz = this.logitChange(tensor, index, c - 1, n, false, switched);
        sum += lossChange(this.logP, n * CLASSES, dz, this.labels[n]);
      }
      return sum;
    }

    /** Change of the mean loss when a parameter is scaled by c; the exact change at c = 0. */
    change(tensor, index, c = 0) {
      return this.changeOver(tensor, index, c, 0, this.count) / this.count;
    }

    /** Sums over some images of the first and second derivatives of their losses along c, at c = 1 with every gate as it is. */
    derivativesOver(tensor, index, first, stop) {
      let slope = 0;
      let curvature = 0;
      for (let n = first; n < stop; n++) {
        const v = this.logitChange(tensor, index, 1, n, true, null);
        let mean = 0;
        for (let k = 0; k < CLASSES; k++) mean += Math.exp(this.logP[n * CLASSES + k]) * v[k];
        slope += mean - v[this.labels[n]];
        for (let k = 0; k < CLASSES; k++) curvature += Math.exp(this.logP[n * CLASSES + k]) * (v[k] - mean) ** 2;
      }
      return { slope, curvature };
    }

    /** First and second derivative of the mean loss along c, at c = 1: the first is SNIP's salience. */
    derivatives(tensor, index) {
      const { slope, curvature } = this.derivativesOver(tensor, index, 0, this.count);
      return { slope: slope / this.count, curvature: curvature / this.count };
    }
  }

  /**
   * The rank of every parameter, 0 for the largest magnitude; among equals, the earlier parameter comes first.
   * The bits of a positive float32 grow with its value, so bits and place make one number that sorts quickly.
   */
  function ranks(saliences) {
    const bits = new Uint32Array(saliences.slice().buffer);
    const keys = new Float64Array(saliences.length);
    for (let i = 0; i < keys.length; i++) keys[i] = (0x7fffffff - (bits[i] & 0x7fffffff)) * 65536 + i;
    keys.sort();
    const rank = new Uint16Array(saliences.length);
    for (let r = 0; r < keys.length; r++) rank[keys[r] % 65536] = r;
    return rank;
  }

  /** How many parameters a sparsity keeps; the sparsity is given in ten-thousandths, so that nothing is rounded. */
  function numKept(sparsity) {
    const product = sparsity * TOTAL;
    return TOTAL - (product - (product % 10000)) / 10000;
  }

  /** How many ways lead from each pixel through kept weights to an output. */
  function paths(kept) {
    const starts = Object.fromEntries(TENSORS.map((tensor) => [tensor.name, tensor.start]));
    let ways = new Float64Array(CLASSES).fill(1);
    for (const layer of [3, 2, 1]) {
      const [inputs, outputs, start] = [UNITS[layer - 1], UNITS[layer], starts[`full${layer}.weight`]];
      const before = new Float64Array(inputs);
      for (let j = 0; j < outputs; j++) {
        if (ways[j] === 0) continue;
        for (let i = 0, at = start + j * inputs; i < inputs; i++) before[i] += kept[at + i] * ways[j];
      }
      ways = before;
    }
    const pooled = new Float64Array(CONV1.channels * P1);
    for (let o = 0; o < CONV2.channels; o++) {
      for (let i = 0; i < CONV1.channels; i++) {
        for (let tap = 0; tap < TAPS; tap++) {
          if (!kept[starts["conv2.weight"] + (o * CONV1.channels + i) * TAPS + tap]) continue;
          const to = i * P1 + Math.floor(tap / KERNEL) * CONV1.pooled + (tap % KERNEL);
          for (let y = 0; y < CONV2.side; y++) {
            const row = o * P2 + (y >> 1) * CONV2.pooled;
            for (let x = 0; x < CONV2.side; x++) pooled[to + y * CONV1.pooled + x] += ways[row + (x >> 1)];
          }
        }
      }
    }
    const pixels = new Float64Array(PIXELS);
    for (let o = 0; o < CONV1.channels; o++) {
      for (let tap = 0; tap < TAPS; tap++) {
        if (!kept[starts["conv1.weight"] + o * TAPS + tap]) continue;
        const [down, right] = [Math.floor(tap / KERNEL) - PADDING, (tap % KERNEL) - PADDING];
        for (let y = Math.max(0, -down); y < Math.min(SIDE, SIDE - down); y++) {
          const row = o * P1 + (y >> 1) * CONV1.pooled;
          for (let x = Math.max(0, -right); x < Math.min(SIDE, SIDE - right); x++) {
            pixels[(y + down) * SIDE + x + right] += pooled[row + (x >> 1)];
          }
        }
      }
    }
    return pixels;
  }

  return { Network, TENSORS, TOTAL, GATES, SIDE, ranks, numKept, paths };
})();
