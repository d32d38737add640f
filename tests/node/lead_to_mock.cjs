// Preloaded (`node --require`). The packages have the hosts of IMS in their code, and no option for
// another: this changes where those hosts lead, as an entry in a hosts file would, and nothing else
// of what the packages send or read. Requests to any other host fail.
const hosts = ['https://ims-na1.adobelogin.com', 'https://ims-na1-stg1.adobelogin.com'];
const { fetch } = globalThis;

globalThis.fetch = async (resource, options) => {
  const { origin, pathname, search } = new URL(resource);
  if (!hosts.includes(origin)) {
    throw new Error(`a request to ${origin}`);
  }
  return fetch(process.env.MOCK_IMS_URL + pathname + search, options);
};
