// Answers that the server has not acknowledged yet, in IndexedDB: they survive reload, offline and restarts.

const NAME = "beyond-outbox";
const STORE = "items";

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

// Random text of 32 hexadecimal digits; crypto.randomUUID is missing on plain http.
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Outbox {
  // owner: who is signed in here. Answers of somebody else who used this browser are never sent as ours.
  static async open(owner) {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      const store = request.result.createObjectStore(STORE, { keyPath: "order", autoIncrement: true });
      store.createIndex("owner", "owner");
    };
    return new Outbox(await done(request), owner);
  }

  constructor(database, owner) {
    this.database = database;
    this.owner = owner;
  }

  // Resolves once the item is on disk.
  add(item) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(STORE, "readwrite", { durability: "strict" });
      transaction.objectStore(STORE).add({ ...item, owner: this.owner });
      transaction.oncomplete = () => resolve();
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }

  // All items in the order in which they were added.
  async items() {
    const store = this.database.transaction(STORE).objectStore(STORE);
    return done(store.index("owner").getAll(this.owner));
  }

  remove(items) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(STORE, "readwrite");
      const store = transaction.objectStore(STORE);
      for (const item of items) store.delete(item.order);
      transaction.oncomplete = () => resolve();
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }
}
